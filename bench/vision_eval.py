"""What the harness costs with images: ``eval_harness run`` after engine start against a bare ``LLM.chat``; its memory.

Same checkpoint (a random tiny Qwen2-VL: every completion runs to its limit), same JPEG files on disk, same sampling
settings and seeds; every measurement in a fresh process, in turn. Both read and decode each file; the harness also
grades and writes records. ``ratio`` is harness over bare wall time (median over rounds, lower is better);
``memory_ratio`` is the harness's peak, engine included, with four times the items over the peak with the items alone.
Ends in one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import threading
import time
from pathlib import Path

import _paired as paired

SIZE = (448, 336)
"""Width and height of the images, 192 tokens each."""
TARGETS = {"ratio": 1.15, "memory_ratio": 1.05}
QUESTION = "How many?"


def make_inputs(folder: Path, num: int) -> None:
    """A random checkpoint and ``num`` JPEG files of drawn ellipses."""
    import numpy as np
    from PIL import Image, ImageDraw

    from gpg_repro.tiny.vision_model import build_processor, build_vision_model

    processor = build_processor()
    build_vision_model(processor.tokenizer).save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    (folder / "pictures").mkdir()
    for number in range(num):
        random = np.random.default_rng(number)
        image = Image.new("RGB", SIZE, tuple(random.integers(180, 256, 3)))
        pen = ImageDraw.Draw(image)
        for _ in range(12):
            x, y, w, h = random.integers(0, 300, 4)
            pen.ellipse((x, y, x + w, y + h), fill=tuple(random.integers(0, 256, 3)))
        image.save(folder / "pictures" / f"{number}.jpg", quality=90)
    rows = [{"question": QUESTION, "gold": "$1$", "image": f"{number}.jpg"} for number in range(num)]
    (folder / "pictures.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def benchmark(num: int):
    """The pictures as a benchmark of the harness."""
    from eval_harness.benchmarks.base import Benchmark, DecodingDefaults
    from eval_harness.sources import Local

    return Benchmark(
        name="bench_pictures",
        title="pictures",
        version=1,
        num_items=num,
        source=Local("pictures", "pictures.jsonl", ("question", "gold", "image"), "pictures", ""),
        prompt="{problem}",
        prompt_origin="this bench",
        question_field="question",
        gold_field="gold",
        grader="boxed",
        decoding=DecodingDefaults(temperature=1.0, top_p=1.0, max_new_tokens=32, samples=2),
        image_field="image",
    )


class PeakOfFamily:
    """Largest resident memory of this process and its descendants together, sampled while it is open."""

    def __enter__(self) -> PeakOfFamily:
        import psutil

        self.peak, self._open = 0, True

        def watch() -> None:
            me = psutil.Process()
            while self._open:
                total = 0
                for process in [me, *me.children(recursive=True)]:
                    try:
                        total += process.memory_info().rss
                    except psutil.Error:
                        continue
                self.peak = max(self.peak, total)
                time.sleep(0.1)

        self._thread = threading.Thread(target=watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._open = False
        self._thread.join()


def harness(folder: Path, num: int, samples: int, tokens: int) -> dict:
    """Seconds from engine start to the last record, and the peak of memory."""
    from eval_harness import benchmarks
    from eval_harness.records import read_run
    from eval_harness.runner import Overrides, evaluate

    benchmarks.all_benchmarks()["bench_pictures"] = benchmark(num)  # this process's registry
    with PeakOfFamily() as memory, tempfile.TemporaryDirectory() as out:
        run = evaluate(
            str(folder / "model"),
            ["bench_pictures"],
            engine="vllm",
            out=Path(out) / "run",
            data_root=folder,
            overrides=Overrides(samples=samples, max_new_tokens=tokens),
            progress=False,
        )
        record = read_run(run)
    return {
        "seconds": record.timings["generate_and_grade_s"],
        "completions": record.benchmarks["bench_pictures"].scored,
        "peak_mib": memory.peak / 2**20,
    }


def bare(folder: Path, num: int, samples: int, tokens: int) -> dict:
    """Seconds of one ``LLM.chat`` over the same requests, reading the files included."""
    import os

    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    import torch
    import vllm

    from eval_harness.images import decode
    from eval_harness.runner import item_seed

    on_gpu = torch.cuda.is_available()
    options = {} if on_gpu else {"enforce_eager": True, "enable_chunked_prefill": False}
    llm = vllm.LLM(
        model=str(folder / "model"),
        dtype="bfloat16" if on_gpu else "float32",
        seed=1234,
        limit_mm_per_prompt={"image": 1, "video": 0},
        mm_processor_cache_gb=0,
        **options,
    )
    start = time.perf_counter()
    conversations, params = [], []
    for number in range(num):
        image = decode((folder / "pictures" / f"{number}.jpg").read_bytes())
        content = [{"type": "image_pil", "image_pil": image}, {"type": "text", "text": QUESTION}]
        conversations.append([{"role": "user", "content": content}])
        seed = item_seed(1234, "bench_pictures", str(number))
        params.append(vllm.SamplingParams(n=samples, temperature=1.0, max_tokens=tokens, seed=seed))
    outputs = llm.chat(conversations, params, use_tqdm=False)
    return {"seconds": time.perf_counter() - start, "completions": sum(len(o.outputs) for o in outputs)}


def main() -> None:
    """Measure both, in turn; then the harness with four times the items."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        kind, folder, *numbers = args.one
        work = harness if kind == "harness" else bare
        paired.print_result(work(Path(folder), *map(int, numbers)))
        return

    def measure(kind: str, num: int) -> dict:
        numbers = (str(num), str(args.samples), str(args.max_new_tokens))
        return paired.in_fresh_process(__file__, kind, folder, *numbers)

    with tempfile.TemporaryDirectory() as folder:
        make_inputs(Path(folder), args.items)
        rounds = []
        for number in range(args.rounds):
            theirs, ours = measure("bare", args.items), measure("harness", args.items)
            assert theirs["completions"] == ours["completions"]
            rounds.append((ours, theirs))
            ratio = ours["seconds"] / theirs["seconds"]
            print(f"round {number}: harness {ours['seconds']:.2f} s, bare {theirs['seconds']:.2f} s, ratio {ratio:.3f}")
    with tempfile.TemporaryDirectory() as folder:
        make_inputs(Path(folder), 4 * args.items)
        large = measure("harness", 4 * args.items)
    peak = statistics.median(ours["peak_mib"] for ours, _ in rounds)
    print(f"peak memory, engine included: {peak:.0f} MiB; with four times the items {large['peak_mib']:.0f} MiB")
    print(
        json.dumps(
            {
                "bench": "vision_eval",
                "ratio": round(statistics.median(a["seconds"] / b["seconds"] for a, b in rounds), 3),
                "better": "lower",
                "target": TARGETS["ratio"],
                "harness_s": round(statistics.median(a["seconds"] for a, _ in rounds), 2),
                "bare_s": round(statistics.median(b["seconds"] for _, b in rounds), 2),
                "memory_ratio": round(large["peak_mib"] / peak, 3),
                "memory_target": TARGETS["memory_ratio"],
                "peak_mib": round(peak),
                "items": args.items,
                "completions": rounds[0][0]["completions"],
                "rounds": args.rounds,
                **paired.machine(),
            }
        )
    )


if __name__ == "__main__":
    main()
