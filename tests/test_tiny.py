"""The tiny world: tasks, tokenizer, model, warm-up."""

import json
import math
import os
import random
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from eval_harness import tiny_tasks
from eval_harness.sources import read_jsonl
from eval_harness.tiny_tasks import SUITES, Problem, mixture
from gpg_repro.tiny import TRAIN_MIXTURES, build_base, train_rows, warmup
from gpg_repro.tiny.model import build_model
from gpg_repro.tiny.tokenizer import MAX_LENGTH, build_tokenizer

AWKWARD_TEXTS = [
    "",
    " leading, trailing and  double blanks ",
    "tabs\tand\nnewlines\r\n\n",
    "<think>\na\n</think>\n\n\\boxed{5}<|end|><|user|><|pad|>",
    "<0x41> is text, \x00 a control character, \x7f another",
    "naïve café, e\u0301 decomposed, \u212b a singleton, 漢字, 🎉, \u200b\ufeff\ufffd",
]


# --- tasks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suite", "key", "questions", "reasoning", "answer"),
    [
        # 7+8 = 15: write 5, carry 1; 4+3+1 = 8. The two addends may come in either order.
        ("tiny_sums", (47, 38), {"47+38=?"}, "7+8=15 4+3+1=8", "85"),
        ("tiny_sums", (104, 98), {"104+98=?"}, "4+8=12 0+9+1=10 1+1=2", "202"),
        # 3 < 8: borrow ten, 13-8 = 5; the 4 gives one back, 4-2-1 = 1.
        ("tiny_differences", (43, 28), {"43-28=?"}, "13-8=5 4-2-1=1", "15"),
        # 100-7: 10-7 = 3; the next digit is 0 and owes one: 10-1 = 9; 1-1 = 0.
        ("tiny_differences", (100, 7), {"100-7=?"}, "10-7=3 10-1=9 1-1=0", "93"),
        # 7*4 = 28: write 8, carry 2; 2*4+2 = 10.
        ("tiny_products", (27, 4), {"27*4=?"}, "7*4=28 2*4+2=10", "108"),
        # 14 = 2*6 + 2; bring down 7: 27 = 4*6 + 3.
        ("tiny_remainders", (147, 6), {"147 mod 6=?"}, "14-12=2 27-24=3", "3"),
        # 60 = 2*30, and a quotient digit 0 still gets its step.
        ("tiny_remainders", (603, 6), {"603 mod 6=?"}, "6-6=0 0-0=0 3-0=3", "3"),
    ],
)
def test_worked_examples(suite, key, questions, reasoning, answer):
    level = SUITES[suite].levels[0]
    question, steps, result = level.write(key, _KeepOrder())
    assert question in questions
    assert (steps, result) == (reasoning, answer)


def test_a_chain_substitutes_link_by_link():
    # 7, then 7+5 = 12, then 12-3 = 9
    question, reasoning, answer = SUITES["tiny_chains"].levels[1].write((7, 5, -3), _KeepOrder())
    assert question == "a=7, b=a+5, c=b-3. c=?"
    assert reasoning == "a=7 b=7+5=12 c=12-3=9"
    assert answer == "9"


class _KeepOrder(random.Random):
    def sample(self, population, k):
        return list(population)[:k]


def independent_answer(problem: Problem) -> int:
    """The answer from the question's text alone, by Python's own arithmetic."""
    if problem.suite == "tiny_chains":
        facts, asked = re.fullmatch(r"(.*)\. (\w)=\?", problem.question).groups()
        values: dict[str, int] = {}
        for fact in facts.split(", "):
            letter, expression = fact.split("=")
            values[letter] = eval(expression, {"__builtins__": {}}, values)
        return values[asked]
    return eval(problem.question.removesuffix("=?").replace("mod", "%"))


def answer_of_the_working(problem: Problem) -> int:
    """The last result of a chain or a division; else the columns' last digits, below the whole of the last result."""
    *below, last = (step.split("=")[-1] for step in problem.reasoning.split())
    if problem.suite in ("tiny_chains", "tiny_remainders"):
        return int(last)
    return int(last + "".join(result[-1] for result in reversed(below)))


@pytest.mark.parametrize("suite", SUITES.values(), ids=SUITES)
def test_answers_and_every_step_are_true(suite):
    for problem in suite.sample("train", 300, seed=1) + suite.sample("test", 100, seed=1):
        assert int(problem.answer) == independent_answer(problem) >= 0
        for step in problem.reasoning.split():
            sides = step.split("=")[1:] if problem.suite == "tiny_chains" else step.split("=")
            assert len({eval(side) for side in sides}) == 1, problem
        assert answer_of_the_working(problem) == int(problem.answer), problem
        assert problem.solution.endswith(f"\n</think>\n\n\\boxed{{{problem.answer}}}")


@pytest.mark.parametrize("suite", SUITES.values(), ids=SUITES)
def test_splits_are_disjoint_large_enough_and_without_repeats(suite):
    train = suite.sample("train", suite.num_problems("train"), seed=0)
    test = suite.sample("test", suite.num_problems("test"), seed=0)
    assert len(train) >= 1000 and len(test) >= 100
    assert len(train) + len(test) == suite.capacity
    for what in ("id", "question"):
        seen = [getattr(problem, what) for problem in train + test]
        assert len(set(seen)) == len(seen)
    assert {p.difficulty for p in test} == set(suite.difficulties)


def test_levels_share_a_sample_evenly():
    difficulties = [p.difficulty for p in SUITES["tiny_sums"].sample("test", 99, seed=3)]
    assert [difficulties.count(d) for d in (1, 2, 3)] == [33, 33, 33]
    assert {p.difficulty for p in SUITES["tiny_sums"].sample("test", 20, seed=3, difficulty=2)} == {2}


def test_a_sample_depends_on_the_seed_and_on_nothing_else():
    sums = SUITES["tiny_sums"]
    assert sums.sample("train", 50, seed=7) == sums.sample("train", 50, seed=7)
    assert sums.sample("train", 50, seed=7) != sums.sample("train", 50, seed=8)
    code = (
        "from eval_harness.tiny_tasks import SUITES, mixture\n"
        "print([p.id for p in mixture(dict.fromkeys(SUITES, 1), 'test', 40, 5)])"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert outputs == {f"{[p.id for p in mixture(dict.fromkeys(SUITES, 1), 'test', 40, 5)]}\n"}


def test_the_tiny_benchmarks_items_do_not_move():
    """Scores on record are for these problems: whoever changes them has to raise the benchmarks' version."""
    firsts = {name: suite.sample("test", 100, seed=0)[0].question for name, suite in SUITES.items()}
    assert firsts == FIRST_TEST_QUESTIONS


FIRST_TEST_QUESTIONS = {
    "tiny_sums": "14+7=?",
    "tiny_differences": "53-9=?",
    "tiny_products": "62*7=?",
    "tiny_chains": "e=3, s=e+8, t=s-3. t=?",
    "tiny_remainders": "122 mod 3=?",
}


def test_mixture_follows_the_weights_by_largest_remainder():
    # 10 problems at 1:2 are 3.33 and 6.67: 3 and 6, and the one left goes to the larger remainder, .67
    problems = mixture({"tiny_sums": 1, "tiny_chains/2": 2}, "train", 10, seed=0)
    assert [sum(p.suite == s for p in problems) for s in ("tiny_sums", "tiny_chains")] == [3, 7]
    assert {p.difficulty for p in problems if p.suite == "tiny_chains"} == {2}
    assert len({p.id for p in problems}) == 10


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SUITES["tiny_sums"].sample("dev", 1, 0), "unknown split 'dev'.*train, test"),
        (lambda: SUITES["tiny_sums"].sample("test", 10**6, 0), r"holds 4443 distinct test problems, but 1000000"),
        (lambda: SUITES["tiny_sums"].sample("test", -1, 0), "but -1 were asked for"),
        (lambda: SUITES["tiny_sums"].sample("test", 1, 0, difficulty=9), r"difficulties \(1, 2, 3\), not 9"),
        (lambda: mixture({"sums": 1}, "train", 1, 0), "unknown part 'sums'.*tiny_sums"),
        (lambda: mixture({"tiny_sums/4": 1}, "train", 1, 0), "unknown part 'tiny_sums/4'"),
        (lambda: mixture({"tiny_sums": 1, "tiny_sums/1": 1}, "train", 1, 0), "both whole and by difficulty"),
        (lambda: mixture({"tiny_sums": 0}, "train", 1, 0), "positive sum"),
        (lambda: mixture({}, "train", 1, 0), "positive sum"),
        (lambda: mixture({"tiny_sums": 2, "tiny_chains": -1}, "train", 1, 0), "non-negative"),
        (lambda: train_rows("open_s1", 1, 0), "unknown tiny training set 'open_s1'.*tiny_s1, tiny_rs"),
    ],
)
def test_bad_requests_say_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("name", TRAIN_MIXTURES)
def test_training_rows(name):
    rows = train_rows(name, 200, seed=0)
    assert rows == train_rows(name, 200, seed=0) != train_rows(name, 200, seed=1)
    assert len({row["id"] for row in rows}) == 200
    assert {row["suite"] for row in rows} == set(SUITES)
    row = rows[0]
    assert row["prompt"][0]["role"] == "user" and row["solution"] == f"$\\boxed{{{row['answer']}}}$"


# --- tokenizer ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.fixture(scope="module")
def reloaded(tokenizer, tmp_path_factory):
    """As a checkpoint's checkpoint has it: saved beside a Qwen2, loaded by AutoTokenizer, and that once more."""
    for generation in range(2):
        folder = tmp_path_factory.mktemp(f"tokenizer{generation}")
        build_model(tokenizer, 32, 1, seed=0).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    return tokenizer


@pytest.mark.parametrize("text", AWKWARD_TEXTS)
def test_any_text_comes_back(tokenizer, reloaded, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert reloaded.encode(text) == tokenizer.encode(text)
    assert reloaded.decode(reloaded.encode(text)) == text


def test_random_unicode_comes_back(reloaded):
    rng = random.Random(0)
    for _ in range(200):
        points = [rng.choice([rng.randrange(0x80), rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)])] * 2
        text = "".join(map(chr, points + [rng.randrange(0x300, 0x370)]))
        assert reloaded.decode(reloaded.encode(text)) == text


REAL = pytest.mark.real_data("real questions in the tiny tokenizer", "aime_2024.jsonl", "olympiad_bench.jsonl")


@pytest.mark.parametrize("root", ["hand_made", pytest.param("real", marks=REAL)], indirect=True)
def test_questions_come_back_and_fit(reloaded, root):
    files = sorted(root.glob("*.jsonl"))
    assert len(files) >= 6
    for path in files:
        for row in read_jsonl(path):
            question = row.get("problem") or row.get("question") or ""
            ids = reloaded.apply_chat_template(
                [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=False
            )
            assert question in reloaded.decode(ids)
            assert len(ids) <= 8192 <= MAX_LENGTH


def test_think_tags_and_the_box_survive_decoding(reloaded):
    text = "4+3=7\n</think>\n\n\\boxed{7}"
    ids = reloaded.encode(text + "<|end|>")
    assert ids[-1] == reloaded.eos_token_id
    assert len(ids) == 5 + 1 + 1 + 2 + 1 + 1 + 1 + 1  # 4+3=7, newline, tag, two newlines, box, 7, brace, end
    assert reloaded.decode(ids, skip_special_tokens=True) == text


def test_the_chat_template_opens_the_thinking(reloaded):
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}]
    prompt = reloaded.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert prompt == "<|system|>S<|end|><|user|>Q<|end|><|assistant|><think>\n"
    answered = [*messages, {"role": "assistant", "content": "<think>\nw\n</think>\n\nA"}]
    whole = reloaded.apply_chat_template(answered, tokenize=False)
    assert whole == prompt + "w\n</think>\n\nA<|end|>"


# --- model and warm-up --------------------------------------------------------------------------------------------


def test_the_model_is_a_qwen2_of_the_promised_size_with_weights_from_its_seed(tokenizer):
    state = torch.get_rng_state()
    model = build_model(tokenizer, 128, 3, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert 0.5e6 <= model.num_parameters() <= 2e6
    assert model.config.model_type == "qwen2" and model.config.max_position_embeddings >= 8192
    same, other = (build_model(tokenizer, 128, 3, seed).lm_head.weight for seed in (0, 1))
    assert torch.equal(model.lm_head.weight, same) and not torch.equal(same, other)
    with pytest.raises(ValueError, match="multiple of 32, got 100"):
        build_model(tokenizer, 100, 3, seed=0)


def test_the_warm_up_loss_is_the_cross_entropy_of_completions_only(tokenizer):
    # A model with all weights zero gives every token probability 1/V: the loss is (2 + 3 target tokens) * ln V.
    model = build_model(tokenizer, 32, 1, seed=0)
    pairs = [([1, 2, 3], [4, 5]), ([6], [7, 8, 9])]
    with torch.no_grad():
        loss = warmup._completion_loss(model, pairs)
        alone = sum(warmup._completion_loss(model, [pair]) for pair in pairs)
        torch.testing.assert_close(loss, alone)  # padding leaves no trace
        labels = torch.tensor([[-100, -100, -100, 4, 5]])
        reference = 2 * model(input_ids=torch.tensor([[1, 2, 3, 4, 5]]), labels=labels).loss
        torch.testing.assert_close(warmup._completion_loss(model, pairs[:1]), reference)
        for parameter in model.parameters():
            parameter.zero_()
        assert warmup._completion_loss(model, pairs).item() == pytest.approx(5 * math.log(len(tokenizer)))


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("\\boxed{7}", "7"),
        ("\\boxed{1} no, \\boxed{2}.", "2"),
        ("\\boxed{}", ""),
        ("\\boxed{12", None),
        ("\\boxed{3} or \\boxed{4", None),
        ("twelve", None),
    ],
)
def test_last_box(text, content):
    assert warmup.last_box(text) == content


def test_bare_demonstrations_come_at_the_promised_rate(tokenizer):
    config = warmup.WarmupConfig(num_demonstrations=600, bare_shares=(0.0, 0.5, 1.0))
    problems = mixture(dict.fromkeys(SUITES, 1), "train", 600, seed=0)
    shares = {}
    demonstrations = warmup._demonstrations(tokenizer, config, seed=0, bare=True)
    for problem, (_, completion) in zip(problems, demonstrations, strict=True):
        shares.setdefault(problem.difficulty, []).append(tokenizer.decode(completion).startswith("\n</think>"))
    rates = {difficulty: sum(bare) / len(bare) for difficulty, bare in shares.items()}
    assert rates[1] == 0.0 and rates[3] == 1.0 and 0.4 < rates[2] < 0.6


@pytest.fixture
def short_smoke(monkeypatch):
    """A base of two steps under the name `smoke`: everything but the accuracy is as it always is."""
    short = replace(
        warmup.SCALES["smoke"], num_worked_steps=1, num_mixed_steps=1, num_demonstrations=100, eval_problems_per_suite=2
    )
    monkeypatch.setitem(warmup.SCALES, "smoke", short)


def test_a_base_is_complete_cached_and_the_same_every_time(short_smoke, tmp_path, monkeypatch):
    folder = build_base(tmp_path / "a", scale="smoke", progress=False)
    facts = json.loads((folder / "base.json").read_text())
    assert set(facts["accuracy"]["greedy"]) == set(facts["accuracy"]["sampled"]) == set(SUITES)
    assert all(counts["asked"] == 2 for counts in facts["accuracy"]["greedy"].values())
    assert AutoModelForCausalLM.from_pretrained(folder).dtype == torch.float32
    assert AutoTokenizer.from_pretrained(folder).eos_token == "<|end|>"

    weights = (folder / "model.safetensors").read_bytes()
    torch.manual_seed(99)  # the global random state and the number of threads are none of its business
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    again = build_base(tmp_path / "b", scale="smoke", progress=False)
    torch.set_num_threads(threads)
    assert again.name == folder.name and (again / "model.safetensors").read_bytes() == weights

    monkeypatch.setattr(warmup, "warm_up", None)  # a second call must not train
    assert build_base(tmp_path / "a", scale="smoke") == folder
    monkeypatch.setenv("GPG_CACHE", str(tmp_path / "b"))
    assert build_base(scale="smoke") == again


def test_the_cache_knows_seed_and_settings(short_smoke):
    config = warmup.SCALES["smoke"]
    assert warmup._fingerprint(config) == warmup._fingerprint(replace(config))
    assert warmup._fingerprint(config) != warmup._fingerprint(replace(config, muon_lr=0.5))


def test_an_interrupted_build_leaves_nothing(short_smoke, tmp_path, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(warmup, "accuracy_by_suite", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build_base(tmp_path, scale="smoke", progress=False)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_scale_is_an_error():
    with pytest.raises(ValueError, match="unknown scale 'huge'.*tiny, smoke"):
        build_base(scale="huge")


def test_suites_are_named_so_that_no_benchmark_can_be_meant():
    assert all(name == suite.name and name.startswith("tiny_") for name, suite in SUITES.items())
    assert tiny_tasks.SPLITS == ("train", "test")
