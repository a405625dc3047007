"""Benchmarks: prompts to the byte, counts, golds, and what happens when the data is wrong."""

from __future__ import annotations

import json
import shutil

import own_data
import pytest

from eval_harness.benchmarks import get_benchmark, prompts_hash
from eval_harness.errors import UserError
from eval_harness.graders import get_grader
from eval_harness.sources import Hub, read_jsonl
from eval_harness.tiny_tasks import SUITES

# hash_examples of open-rs's public lighteval result files: their prompts and ours are the same, byte for byte
PUBLIC_HASHES = {
    "aime24": "ddec8fc79d0a014b",
    "math500": "adf0cc8311011db2",
    "amc23": "57f3ead69f601b6a",
    "minerva": "2380609739db80f4",
    "olympiadbench": "96eebb759f237c57",
}
OWN_HASHES = {
    "aime24": "43eb998b39259bf3",
    "math500": "8a26229286dd74d2",
    "amc23": "a7e758ebbb852fc4",
    "minerva": "6106f17883d5c059",
    "olympiadbench": "6fa548120ea128e2",
}
"""Of the hand-made rows under TEMPLATE, by an XXH64 in plain Python that gives PUBLIC_HASHES for the real files."""
TEMPLATE = (
    "Solve the following math problem efficiently and clearly.  "
    "The last line of your response should be of the following format: 'Therefore, the final answer is: "
    "$\\boxed{ANSWER}$. I hope it is correct' (without quotes) where ANSWER is just the final number or expression "
    "that solves the problem. Think step by step before answering.\n\n"
)
TINY = list(SUITES)


def hand_made_items(name, folder):
    """The items of the hand-made rows, which come first in our own file."""
    return get_benchmark(name).load(folder)[: len(own_data.hand_made(name))]


@pytest.mark.parametrize("name", OWN_HASHES)
def test_prompts_and_their_hash_are_those_of_the_published_template(name, own_data_root):
    benchmark = get_benchmark(name)
    assert len(benchmark.load(own_data_root)) == benchmark.num_items
    items = hand_made_items(name, own_data_root)
    asked = [TEMPLATE + row[benchmark.question_field] for row in own_data.hand_made(name)]
    assert [item.prompt for item in items] == asked
    assert prompts_hash(items) == prompts_hash(items[::-1]) == OWN_HASHES[name]
    assert all(item.gold.strip() for item in items)


@pytest.mark.real_data("prompt hashes and item counts", *(get_benchmark(n).source.local_file for n in PUBLIC_HASHES))
@pytest.mark.parametrize("name", PUBLIC_HASHES)
def test_prompts_reproduce_the_hashes_of_public_result_files(name, data_root):
    items = get_benchmark(name).load(data_root)
    assert len(items) == get_benchmark(name).num_items
    assert prompts_hash(items) == PUBLIC_HASHES[name]
    assert all(item.gold.strip() for item in items)


def test_the_hash_sees_a_single_changed_blank(own_data_root):
    items = hand_made_items("aime24", own_data_root)
    items[3] = items[3].model_copy(update={"prompt": items[3].prompt + " "})
    assert prompts_hash(items) != OWN_HASHES["aime24"]


def test_decoding_is_the_documented_one():
    for name in PUBLIC_HASHES:
        decoding = get_benchmark(name).decoding
        assert (decoding.temperature, decoding.top_p, decoding.max_new_tokens) == (0.6, 0.95, 32768)
        assert (decoding.samples, decoding.seed, decoding.system_prompt) == (1, 1234, None)


def test_five_tiny_suites_load_without_anything(tmp_path):
    assert len(TINY) == 5
    for name in TINY:
        items = get_benchmark(name).load()
        assert len(items) == 100 == len({item.prompt for item in items})
        assert items == get_benchmark(name).load(tmp_path)


def test_unknown_benchmark_suggests_the_closest():
    with pytest.raises(UserError, match="did you mean 'aime24'"):
        get_benchmark("aime-24")


def _write(folder, rows, name="aime_2024.jsonl"):
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


ROWS = [{"problem": f"question {i}", "answer": str(i)} for i in range(30)]


def test_wrong_data_is_named(tmp_path):
    aime = get_benchmark("aime24")
    with pytest.raises(UserError, match="aime_2024.jsonl does not exist"):
        aime.load(tmp_path)
    _write(tmp_path, ROWS[:29])
    with pytest.raises(UserError, match="29 items, expected 30"):
        aime.load(tmp_path)
    _write(tmp_path, [*ROWS[:5], {"problem": "x"}, *ROWS[6:]])
    with pytest.raises(UserError, match="line 6: missing 'answer'"):
        aime.load(tmp_path)
    for empty in ("", "  ", None):
        _write(tmp_path, [*ROWS[:5], {"problem": "x", "answer": empty}, *ROWS[6:]])
        with pytest.raises(UserError, match="item 5 .*gold.*empty"):
            aime.load(tmp_path)
    _write(tmp_path, ROWS)
    assert len(aime.load(tmp_path)) == 30


def test_aime25_is_asked_as_aime24(tmp_path):
    """The same file under both names gives the same prompts and golds: prompt, columns and grader are one."""
    old, new = get_benchmark("aime24"), get_benchmark("aime25")
    rows = [{**row, "id": i, "solution": "unused"} for i, row in enumerate(ROWS)]
    rows[7]["answer"] = "070"
    for name in ("aime_2024.jsonl", "aime_2025.jsonl"):
        _write(tmp_path, rows, name)
    assert new.load(tmp_path) == old.load(tmp_path)
    assert (new.grader, new.decoding, new.prompt_origin) == (old.grader, old.decoding, old.prompt_origin)
    assert get_grader(new.grader).grade(new.load(tmp_path)[7].gold, r"$\boxed{70}$").correct
    _write(tmp_path, rows[:15], "aime_2025.jsonl")
    with pytest.raises(UserError, match="aime25: aime_2025.jsonl holds 15 items, expected 30"):
        new.load(tmp_path)
    (tmp_path / "aime_2025.jsonl").unlink()
    with pytest.raises(UserError, match="aime_2025.jsonl does not exist"):
        new.load(tmp_path)


def test_seeded_and_train_sets_of_the_tiny_suites(tmp_path):
    """Held out and fresh come from the test split, ``_train`` from the other; training sets hold its first problems."""
    for name in TINY:
        held_out, fresh, seen = (get_benchmark(name + end).load() for end in ("", "_seed1", "_train"))
        prompts = [{item.prompt for item in items} for items in (held_out, fresh, seen)]
        assert all(len(part) == 100 for part in prompts) and prompts[0] != prompts[1]
        assert not prompts[2] & (prompts[0] | prompts[1])
        trained_on = {p.question for p in SUITES[name].sample("train", 400, 0)}
        assert prompts[2] <= trained_on
        assert get_benchmark(f"{name}_seed0").load() == held_out


def test_malformed_jsonl_is_named_by_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    for text, message in (('{"a": 1}\n{"a":', "line 2"), ("[1]\n", "line 1.*object"), ('{"a": 1}\n{"b": 2}\n', "'a'")):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=message):
            read_jsonl(path, ("a",))
    path.write_bytes(b'{"a": "\xff"}\n')
    with pytest.raises(UserError, match="UTF-8"):
        read_jsonl(path)
    path.write_text('{"a": "one\u2028line"}\n', encoding="utf-8")
    assert read_jsonl(path) == [{"a": "one\u2028line"}]


def test_an_unreachable_hub_says_what_to_do(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    source = Hub("nobody/nothing-here", "train", None, "nothing.jsonl", ("q", "a"))
    with pytest.raises(UserError, match=r"--data-root DIR with a nothing.jsonl of columns q, a"):
        source.rows(None)


def test_local_copies_work_unchanged_in_another_folder(own_data_root, tmp_path):
    shutil.copy(own_data_root / "amc_23.jsonl", tmp_path)
    assert prompts_hash(hand_made_items("amc23", tmp_path)) == OWN_HASHES["amc23"]
