"""The method in one file is the oracle of GPGTrainer: same weights, same completions, same parameters afterwards.

A rollout is scripted: the n-th time a completion of a prompt is asked for decides its tokens, the n-th draw its reward.
Prompts come in both programs' own order, so the streams are compared as well.
"""

import ast
import itertools
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

os.environ.update(HF_HUB_OFFLINE="1", TRL_EXPERIMENTAL_SILENCE="1", TOKENIZERS_PARALLELISM="false")

from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, set_seed

from gpg_repro import minimal, objective
from gpg_repro.minimal import Group, Settings
from gpg_repro.trainer import GPGConfig, GPGTrainer

SOURCE = Path(minimal.__file__)
PAD, EOS, DIGIT_0, LETTER_A = 0, 1, 2, 12
WORDS = ["<pad>", "<eos>", *(str(digit) for digit in range(10)), *"abcdefghij"]
NUM_PROMPTS, NUM_GENERATIONS, NUM_ROWS = 5, 4, 13  # 13 rows: two chunks of 5 an epoch, three rows left out

RIGHT, WRONG = (1, 1, 1, 1), (0, 0, 0, 0)
MIXED = [(1, 1, 0, 0), (1, 0, 0, 0), (0, 1, 1, 1), (0, 0, 0, 1), (1, 0, 1, 0)]
# Rewards of the five groups of each draw. Valid: 5, 3, 0, 2, 1, 4, 3, 5, 2, 2.
DRAWS = [
    MIXED,
    [MIXED[0], RIGHT, WRONG, MIXED[1], MIXED[2]],
    [WRONG, RIGHT, WRONG, WRONG, RIGHT],
    [RIGHT, MIXED[3], WRONG, WRONG, MIXED[0]],
    [WRONG, WRONG, MIXED[1], WRONG, WRONG],
    [MIXED[2], WRONG, *MIXED[:3]],
    [MIXED[4], RIGHT, WRONG, MIXED[1], MIXED[2]],
    MIXED[::-1],
    [WRONG, WRONG, MIXED[1], WRONG, MIXED[0]],
    [RIGHT, MIXED[3], WRONG, WRONG, MIXED[0]],
]


def make_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", padding_side="left"
    )


def make_model() -> Qwen2ForCausalLM:
    set_seed(0)
    config = Qwen2Config(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.3,
        pad_token_id=PAD,
        eos_token_id=EOS,
    )
    return Qwen2ForCausalLM(config)


def prompts() -> list[str]:
    """Ragged, each different."""
    return [" ".join(WORDS[LETTER_A + (i + j) % 10] for j in range(1 + i // 4)) for i in range(NUM_ROWS)]


def completion(draw: int, group: int, place: int, reward: float) -> list[int]:
    """The reward's digit, one to six letters, and most of the time an EOS."""
    generator = random.Random(f"{draw}/{group}/{place}")
    letters = [generator.randrange(LETTER_A, len(WORDS)) for _ in range(generator.randrange(1, 7))]
    return [DIGIT_0 + int(reward), *letters] + ([EOS] if generator.random() < 0.8 else [])


def run_minimal(draws, num_steps: int, **settings):
    """Returns model, metrics of each step and the prompts in the order they were asked for."""
    tokenizer, model, calls, asked = make_tokenizer(), make_model(), itertools.count(), []

    def scripted(model, tokenizer, row, settings):
        draw, group = divmod(next(calls), NUM_PROMPTS)
        asked.append(row["prompt"])
        ids = [completion(draw, group, place, reward) for place, reward in enumerate(draws[draw][group])]
        return tokenizer(row["prompt"])["input_ids"], ids

    settings = Settings(NUM_PROMPTS, NUM_GENERATIONS, learning_rate=1e-2, **settings)
    rows = [{"prompt": prompt} for prompt in prompts()]
    steps = minimal.train(
        model, tokenizer, rows, lambda row, text: float(text.split()[0]), settings, num_steps, sample=scripted
    )
    return model, list(steps), asked


def run_trainer(output_dir, draws, num_steps: int, **settings):
    """The same with GPGTrainer, four micro-batches a step."""
    calls, asked = itertools.count(), []

    def scripted(prompts, trainer):
        draw, ids = next(calls), []
        asked.extend(prompts[::NUM_GENERATIONS])
        for row in range(len(prompts)):
            group, place = divmod(row, NUM_GENERATIONS)
            ids.append(completion(draw, group, place, draws[draw][group][place]))
        tokenizer = trainer.processing_class
        return {"prompt_ids": [tokenizer(p)["input_ids"] for p in prompts], "completion_ids": ids, "logprobs": None}

    trainer = GPGTrainer(
        model=make_model(),
        reward_funcs=lambda completion_ids, **kwargs: [float(ids[0] - DIGIT_0) for ids in completion_ids],
        args=GPGConfig(
            output_dir=str(output_dir),
            max_steps=num_steps,
            num_generations=NUM_GENERATIONS,
            per_device_train_batch_size=NUM_PROMPTS,
            gradient_accumulation_steps=NUM_GENERATIONS,
            max_completion_length=8,
            learning_rate=1e-2,
            lr_scheduler_type="constant",
            logging_steps=1,
            save_strategy="no",
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            **settings,
        ),
        train_dataset=Dataset.from_dict({"prompt": prompts()}),
        processing_class=make_tokenizer(),
        rollout_func=scripted,
    )
    trainer.train()
    return trainer.model, [log for log in trainer.state.log_history if "reward" in log], asked


def assert_same(output_dir, draws, num_steps: int, **settings) -> list[dict]:
    """Trains both ways and compares weights, prompts and metrics. Returns the metrics of the minimal file."""
    model, steps, asked = run_minimal(draws, num_steps, **settings)
    trained, logs, trainer_asked = run_trainer(output_dir, draws, num_steps, **settings)
    assert asked == trainer_asked
    start = torch.cat([p.flatten() for p in make_model().parameters()])
    ours, theirs = (torch.cat([p.detach().flatten() for p in m.parameters()]) for m in (model, trained))
    moved = (ours - start).norm()
    assert moved > 0.01 * start.norm()
    assert (ours - theirs).norm() < 1e-6 * ours.norm()
    assert (ours - theirs).norm() < 5e-5 * moved  # float32; AdamW enlarges the rounding of small gradients
    for ours_step, log in zip(steps, logs, strict=True):
        assert log["alpha_applied"] == pytest.approx(ours_step["alpha"])
        assert log["num_draws"] == ours_step["num_draws"]
        assert log["reward"] == pytest.approx(ours_step["reward"])
        assert log["loss"] == pytest.approx(ours_step["loss"], abs=1e-4)  # HF rounds it
        assert log["grad_norm"] == pytest.approx(ours_step["grad_norm"], rel=1e-4)
    return steps


# The oracle ---------------------------------------------------------------------------------------------------------


def test_it_stays_one_short_file_without_trl_and_without_our_own_mathematics():
    assert len(SOURCE.read_text(encoding="utf-8").splitlines()) <= 150
    imports = [
        node for node in ast.walk(ast.parse(SOURCE.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    names = {a.name for n in imports for a in n.names} | {n.module for n in imports if isinstance(n, ast.ImportFrom)}
    assert names.isdisjoint({"trl", "accelerate", "gpg_repro.objective", "gpg_repro.trainer"})
    code = f"import sys; sys.path.insert(0, {str(SOURCE.parents[1])!r}); import gpg_repro.minimal; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "trl" not in loaded and "gpg_repro.objective" not in loaded and "torch" in loaded


@pytest.mark.parametrize(
    ("f_norm", "age", "max_grad_norm"),
    [("none", True, 0.05), ("none", False, 1e9), ("group", True, 1e9), ("batch", False, 0.05)],
)
def test_trainer_and_minimal_end_with_the_same_weights(tmp_path, f_norm, age, max_grad_norm):
    # one draw a step: all valid, some, none (momentum alone moves the weights), some, some
    steps = assert_same(tmp_path, DRAWS, 5, f_norm=f_norm, age=age, max_grad_norm=max_grad_norm)
    assert [step["alpha"] for step in steps] == ([1, 5 / 3, 0, 5 / 2, 5] if age else [1] * 5)


def test_sampling_temperature_divides_the_logits(tmp_path):
    assert_same(tmp_path, DRAWS, 3, temperature=0.7)


def test_resampling_until_beta_th(tmp_path):
    # 0.6 of 5 groups are 3. Draws: 5 | 3 | 0 + 2 + 1 | 4 | 3 | 5 valid; the third step misses it twice
    steps = assert_same(tmp_path, DRAWS, 6, beta_th=0.6)
    assert [step["num_draws"] for step in steps] == [1, 1, 3, 1, 1, 1]
    assert [step["alpha"] for step in steps] == pytest.approx([1, 5 / 3, 5 / 3, 5 / 4, 5 / 3, 1])


def test_resampling_drops_what_does_not_fit(tmp_path):
    # 0.8 of 5 groups are 4. Draws: 5 | 3 + 0 + 2 = 5 | 1 + 4 = 5 | 3 + 5 = 8, three of them dropped | 2 + 2 = 4
    steps = assert_same(tmp_path, DRAWS, 5, beta_th=0.8)
    assert [step["num_draws"] for step in steps] == [1, 3, 2, 2, 2]
    assert [step["alpha"] for step in steps] == pytest.approx([1, 1, 1, 1, 5 / 4])


def test_resampling_gives_up_after_max_draws(tmp_path):
    # at most 2 draws: 5 | 3 + 0 | 2 + 1, padded by the last draw's invalid groups | 4
    steps = assert_same(tmp_path, DRAWS, 4, beta_th=0.8, max_draws=2)
    assert [step["num_draws"] for step in steps] == [1, 2, 2, 1]
    assert [step["alpha"] for step in steps] == pytest.approx([1, 5 / 3, 5 / 3, 5 / 4])


# Its parts ----------------------------------------------------------------------------------------------------------


def groups_of(*rewards) -> list[Group]:
    return [Group([5], [[6, EOS]] * len(r), torch.tensor(r, dtype=torch.float32)) for r in rewards]


def test_prompt_chunks_visit_every_row_once_an_epoch():
    chunks = list(itertools.islice(minimal.prompt_chunks(range(13), 5, seed=3), 6))
    epochs = [sorted(chunks[i] + chunks[i + 1]) for i in (0, 2, 4)]
    assert all(len(set(epoch)) == 10 for epoch in epochs)
    assert chunks[:2] != chunks[2:4]
    assert chunks == list(itertools.islice(minimal.prompt_chunks(range(13), 5, seed=3), 6))


def test_prompt_chunks_leave_nothing_out_where_sizes_divide():
    chunks = list(itertools.islice(minimal.prompt_chunks(range(6), 3, seed=3), 4))
    assert [sorted(chunks[i] + chunks[i + 1]) for i in (0, 2)] == [list(range(6))] * 2
    assert sorted(next(minimal.prompt_chunks(range(3), 3, seed=0))) == [0, 1, 2]


def test_collect_pools_the_oldest_valid_groups_first_and_pads_from_the_last_draw():
    a, b, c = groups_of(MIXED[0], WRONG, WRONG), groups_of(WRONG, MIXED[1], RIGHT), groups_of(*MIXED[:3])
    batch, drawn = minimal.collect(iter([a, b, c]).__next__, Settings(beta_th=0.6))
    assert drawn == [a, b]  # 1 + 1 of 3 is 0.67
    assert batch == [a[0], b[1], b[0]]
    batch, drawn = minimal.collect(iter([a, b, c]).__next__, Settings(beta_th=1.0))
    assert drawn == [a, b, c] and batch == [a[0], b[1], c[0]]
    batch, drawn = minimal.collect(iter([a, b, c]).__next__, Settings(beta_th=1.0, max_draws=2))
    assert drawn == [a, b] and batch == [a[0], b[1], b[0]]
    batch, drawn = minimal.collect(iter([a]).__next__, Settings())
    assert drawn == [a] and batch == a


@pytest.mark.parametrize("f_norm", ["none", "group", "batch"])
def test_alpha_and_advantages_agree_with_the_objective(f_norm):
    batch = groups_of(MIXED[0], WRONG, MIXED[1], RIGHT, (0.3, 0.7, 0.7, 2.0))
    rewards = torch.cat([group.rewards for group in batch])
    expected = objective.group_advantages(rewards, 4, f_norm).view(-1, 4)
    torch.testing.assert_close(minimal.advantages_of(batch, f_norm), expected)
    assert minimal.alpha_of(batch) == objective.age_alpha(5, 2) == 5 / 3
    assert minimal.alpha_of(groups_of(WRONG, RIGHT)) == 0.0


def test_completions_end_with_their_first_eos(random_checkpoint):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(random_checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(random_checkpoint)
    with torch.no_grad():  # a random model that ends every few tokens
        model.model.norm.weight.mul_(0)
    torch.manual_seed(0)
    settings = Settings(num_generations=16, max_new_tokens=400)
    prompt, completions = minimal.sample(model, tokenizer, {"prompt": [{"role": "user", "content": "1+1=?"}]}, settings)
    assert tokenizer.decode(prompt) == "<|user|>1+1=?<|end|><|assistant|><think>\n"
    eos = tokenizer.eos_token_id
    ends = [ids.index(eos) if eos in ids else None for ids in completions]
    assert len(completions) == 16 and None in ends and any(end is not None for end in ends)
    assert all(end == len(ids) - 1 for end, ids in zip(ends, completions, strict=True) if end is not None)
    assert all(len(ids) == 400 for end, ids in zip(ends, completions, strict=True) if end is None)


@pytest.mark.full("a program of its own, with torch's imports")
def test_it_runs_as_a_program(smoke_base):
    environment = os.environ | {"GPG_CACHE": str(smoke_base.parent), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-m", "gpg_repro.minimal", "smoke"],
        env=environment, cwd=SOURCE.parents[1], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    assert [line.split()[:2] for line in run.stdout.splitlines()] == [["step", str(step)] for step in (1, 2, 3)]
