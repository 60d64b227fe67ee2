"""OpenAI's GPT-2 weights without TensorFlow (chapter 5): `python src/gpt_download.py 124M`.

Started, it fetches a model, checks each file by its SHA-256 and each tensor by its checksum, and shows what is in it.

Where the code is (`make docs` keeps the lines right):

    download_and_load_gpt2         src/glassgpt/book/weights.py:31
    download_file                  src/glassgpt/book/weights.py:22
    load_gpt2_params_from_tf_ckpt  src/glassgpt/book/weights.py:48
    TensorFlowCheckpoint           src/glassgpt/weights/containers/tensorflow.py:73
"""

from glassgpt.book import download_and_load_gpt2, download_file, load_gpt2_params_from_tf_ckpt
from glassgpt.book.script import errors_in_one_line, parser
from glassgpt.weights.containers.tensorflow import TensorFlowCheckpoint
from glassgpt.weights.download.published import OPENAI_BASE_URLS, OPENAI_SIZES, published_files

__all__ = ["TensorFlowCheckpoint", "download_and_load_gpt2", "download_file", "load_gpt2_params_from_tf_ckpt"]


def main(model_size: str = "124M", models_dir: str = "gpt2", print_urls: bool = False) -> None:
    """Fetch the model unless it is there, and print its settings and the shapes of its tensors; or only where it is."""
    if print_urls:
        for file in published_files(model_size, OPENAI_BASE_URLS[0]):
            print(file._replace(path=f"{models_dir}/{file.path}").described())
        return
    settings, params = download_and_load_gpt2(model_size, models_dir)
    print("Settings:", settings)
    print("Parameter dictionary keys:", list(params))
    print("Token embedding tensor dimensions:", params["wte"].shape)
    print(f"Of the first of {len(params['blocks'])} blocks:")
    for part, layers in params["blocks"][0].items():
        tensors = (
            layers if part.startswith("ln") else {f"{a} {b}": x for a, two in layers.items() for b, x in two.items()}
        )
        for name, tensor in tensors.items():
            print(f"  {f'{part} {name}':<16}{tensor.shape}")


if __name__ == "__main__":
    arguments = parser(__doc__)
    arguments.add_argument("model_size", nargs="?", default="124M", choices=OPENAI_SIZES, help="(default: 124M)")
    arguments.add_argument("--models-dir", default="gpt2", metavar="DIR", help="where the files go (default: gpt2)")
    arguments.add_argument("--print-urls", action="store_true", help="only show what to fetch by hand, and its sha256")
    given = arguments.parse_args()
    with errors_in_one_line(
        arguments,
        unreachable=f"{arguments.prog} {given.model_size} --print-urls lists what to put into {given.models_dir}",
    ):
        main(**vars(given))
