import sys

import pytest

from glassgpt.packages import require


def test_what_is_installed_is_imported() -> None:
    sys.modules.pop("colorsys", None)
    require("colorsys", "json")
    assert "colorsys" in sys.modules


def test_all_that_is_missing_is_named_with_one_command() -> None:
    message = r"^no-such-thing and nor-this missing: pip install no-such-thing nor-this$"
    with pytest.raises(ModuleNotFoundError, match=message):
        require("json", "no_such_thing", "nor_this")
