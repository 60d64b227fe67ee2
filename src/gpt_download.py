"""OpenAI's GPT-2 weights without TensorFlow (chapter 5): `python src/gpt_download.py 124M`."""

import argparse

from glassgpt.book import download_and_load_gpt2, download_file, load_gpt2_params_from_tf_ckpt
from glassgpt.cli import describe
from glassgpt.weights.download.published import OPENAI_SIZES

__all__ = ["download_and_load_gpt2", "download_file", "load_gpt2_params_from_tf_ckpt"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model_size", nargs="?", default="124M", choices=OPENAI_SIZES, help="(default: 124M)")
    parser.add_argument("--models-dir", default="gpt2", help="where the files go (default: gpt2)")
    arguments = parser.parse_args()
    try:
        settings, params = download_and_load_gpt2(arguments.model_size, arguments.models_dir)
    except (OSError, ValueError) as error:
        parser.exit(1, f"{parser.prog}: {describe(error)[0]}\n")
    print("Settings:", settings)
    print("Parameter dictionary keys:", list(params))
    print("Token embedding tensor dimensions:", params["wte"].shape)
