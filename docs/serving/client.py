"""A client of any OpenAI-style server: `glassgpt serve`, vLLM, llama.cpp's. It needs `pip install openai`.

    python client.py [URL [PROMPT]]        # http://127.0.0.1:8000/v1, "Once upon a time"

Goes on with the prompt as the text arrives, then says how probable the likeliest tokens were at the first place.
`OPENAI_API_KEY` is the server's key, where it wants one.
"""

import os
import sys

from openai import OpenAI


def main() -> None:
    """See the module."""
    url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000/v1"
    prompt = sys.argv[2] if len(sys.argv) > 2 else "Once upon a time"
    client = OpenAI(base_url=url, api_key=os.environ.get("OPENAI_API_KEY", "none"))
    model = client.models.list().data[0].id

    print(f"{model}: {prompt}", end="", flush=True)
    for chunk in client.completions.create(
        model=model, prompt=prompt, max_tokens=60, temperature=0.8, top_p=0.95, seed=1, stream=True
    ):
        print(chunk.choices[0].text, end="", flush=True)

    first = client.completions.create(model=model, prompt=prompt, max_tokens=1, temperature=0, logprobs=3)
    print("\n\nfirst token:")
    for token, logprob in sorted((first.choices[0].logprobs.top_logprobs[0]).items(), key=lambda item: -item[1]):
        print(f"  {logprob:8.3f}  {token!r}")


if __name__ == "__main__":
    main()
