"""What eight samples per prompt cost in the transformers engine: a prefill per prompt against a prefill per sample.

The engine runs each prompt, pictures included, through the model once and repeats its keys and values; the other way
runs it once per sample. Both backends live in one process on one torch thread and take turns on the same random model,
prompts and seeds; the completions of a pair are compared. Ends in one JSON line; ``ratio`` is the time of a batch at
512 prompt and 16 new tokens, text (lower is better).
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import random
import statistics
import tempfile
from contextlib import nullcontext
from pathlib import Path

import _paired as paired
import numpy as np
import torch
from _paired import Workload
from PIL import Image

from eval_harness.engines import EngineSettings, Request, Sampling
from eval_harness.engines.transformers import TransformersBackend
from gpg_repro.tiny.tokenizer import build_tokenizer
from gpg_repro.tiny.vision_model import build_processor, build_vision_model

SHAPES = ((64, 64), (256, 32), (512, 16))
"""Tokens of prompt and completion."""
SAMPLES = 8
SIDE = 168
"""Pixels of a picture; it takes 36 tokens and two brackets of its prompt."""
PICTURE_TOKENS = 38


def write_model(kind: str, folder: Path) -> None:
    """A random model of about 5 M parameters, text or Qwen2-VL, that hardly ever ends a completion early."""
    if kind == "text":
        processor, model = build_tokenizer(), paired.random_model(Workload(longest=1024))
    else:
        processor = build_processor()
        model = build_vision_model(processor.tokenizer, hidden_size=256, num_layers=6, vision_width=192, vision_depth=4)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def requests(kind: str, number: int, prompts: int, prompt_tokens: int, new_tokens: int) -> list[Request]:
    """The prompts of one round; a digit is a token (not so 250 and 500, words of the visual world)."""
    sampling = Sampling(temperature=1.0, top_p=1.0, top_k=0, max_new_tokens=new_tokens, samples=SAMPLES, seed=number)
    found = []
    for place in range(prompts):
        seed = number * prompts + place
        length, images = prompt_tokens, []
        if kind == "vision":
            pixels = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
            data = io.BytesIO()
            Image.fromarray(pixels).save(data, "png")
            length, images = length - PICTURE_TOKENS, [base64.b64encode(data.getvalue()).decode()]
        digits = "".join(random.Random(seed).choices("12346789", k=length))
        found.append(Request(str(place), [{"role": "user", "content": digits}], sampling, images, "concatenate"))
    return found


def timed(backend: TransformersBackend, asked: list[Request]) -> tuple[dict, dict[str, float]]:
    """Results of one batch and the seconds of its step."""
    for request in asked:
        backend.add(request)
    start = paired.now()
    results = backend.step()
    seconds = {kind: end - begin for kind, begin, end in zip(("wall", "cpu"), start, paired.now(), strict=True)}
    assert not backend.has_unfinished(), "one batch was meant to hold all prompts"
    return {result.key: result for result in results}, seconds


def measure(kind: str, backends: dict[str, TransformersBackend], shape: tuple[int, int], rounds: int, prompts: int):
    """Ratios of one case, the first round left out, which warms up."""
    pairs, same, completions = [], 0, 0
    for number in range(rounds + 1):
        asked = requests(kind, number, prompts, *shape)
        order = list(backends) if number % 2 else list(backends)[::-1]  # going first favours nobody
        found = {way: timed(backends[way], asked) for way in order}
        assert all(result.num_prompt_tokens == shape[0] for result in found["once"][0].values())
        pairs.append({way: seconds for way, (_, seconds) in found.items()})
        for key, result in found["once"][0].items():
            other = found["every"][0][key]
            same += sum(a == b for a, b in zip(result.completions, other.completions, strict=True))
            completions += len(result.completions)
    pairs = pairs[1:]
    numbers: dict = {"pairs": len(pairs), "same_completions": [same, completions]}
    for clock in ("cpu", "wall"):
        middle, *interval = paired.median_interval([pair["once"][clock] / pair["every"][clock] for pair in pairs])
        numbers[f"{clock}_ratio"] = round(middle, 4)
        numbers[f"{clock}_interval"] = [round(end, 4) for end in interval] if len(pairs) >= 6 else None
        numbers[f"{clock}_s"] = [
            round(statistics.median(pair[way][clock] for pair in pairs), 3) for way in ("once", "every")
        ]
    return numbers


def main() -> None:
    """Measure the cases, text before vision."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="pairs of each case, at least 6 for an interval")
    parser.add_argument("--prompts", type=int, default=4, help="prompts in a batch")
    args = parser.parse_args()
    paired.quiet()
    torch.set_num_threads(1)
    line: dict = {"bench": "one_prefill"}
    for kind in ("text", "vision"):
        with tempfile.TemporaryDirectory() as folder:
            write_model(kind, Path(folder))
            backends = {way: TransformersBackend(EngineSettings(folder)) for way in ("once", "every")}
        backends["every"]._one_prefill = lambda *args: nullcontext()
        for shape in SHAPES:
            numbers = measure(kind, backends, shape, args.rounds, args.prompts)
            line[f"{kind} {shape[0]}:{shape[1]}"] = numbers
            same, completions = numbers["same_completions"]
            print(f"{kind}, {shape[0]}:{shape[1]}: {paired.shown(numbers)}; {same} of {completions} completions equal")
    clock = "wall" if torch.cuda.is_available() else "cpu"
    line |= {
        "ratio": line["text 512:16"][f"{clock}_ratio"],
        "better": "lower",
        "samples": SAMPLES,
        "prompts": args.prompts,
        "rounds": args.rounds,
        **paired.machine(),
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
