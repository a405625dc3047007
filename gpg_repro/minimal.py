"""GPG in one file: Algorithm 1 of arXiv 2504.02546 in plain PyTorch and transformers, from sampling to the AdamW step.

Read it from top to bottom, or copy it. One optimiser step
    1. takes Q prompts, samples G completions of each and pays every completion a reward;
    2. pools the valid groups, those whose rewards are not all equal, and draws again until their share is beta_th;
    3. subtracts from each reward its group's mean (Eq. 6) and sets alpha = B / (B - M), M of B groups invalid (Eq. 7);
    4. minimises alpha * mean over groups of  sum_it -log pi(o_it) A_i / sum_i |o_i|  (Eq. 5 and 8) with AdamW.
There is no critic, no reference model, no probability ratio; nothing is clipped but the norm of the gradient.

`gpg_repro.trainer` does the same faster, on any number of processes; a test trains both from one model on the same
completions and compares the weights. Run it: `python -m gpg_repro.minimal` (a minute, and one more to make the base).
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Settings:
    num_prompts: int = 8  # Q = B, the groups behind one gradient
    num_generations: int = 8  # G, completions per group
    f_norm: str = "none"  # divisor of the advantages: "none" is 1, "group" or "batch" that standard deviation + 1e-4
    age: bool = True  # multiply the loss by alpha
    beta_th: float = 0.0  # least share of valid groups in a step; 0 takes the first draw
    max_draws: int = 20  # after so many draws the step is taken as it is
    temperature: float = 1.0  # of sampling, and of the log-probabilities in the loss
    max_new_tokens: int = 48
    learning_rate: float = 2e-4
    max_grad_norm: float = 1.0


@dataclass
class Group:
    """Token ids of a prompt and its G completions (each up to and including its first EOS), and their [G] rewards."""

    prompt: list[int]
    completions: list[list[int]]
    rewards: Tensor

    @property
    def valid(self) -> bool:
        return bool(self.rewards.max() > self.rewards.min())


def prompt_chunks(rows, num_prompts: int, seed: int) -> Iterator[list[dict]]:
    """Q rows at a time without end, each epoch in a new order; an epoch's incomplete last chunk is left out."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(rows), generator=generator).tolist()
        for start in range(0, len(rows) - num_prompts + 1, num_prompts):
            yield [rows[i] for i in order[start : start + num_prompts]]


@torch.no_grad()
def sample(model, tokenizer, row: dict, settings: Settings) -> tuple[list[int], list[list[int]]]:
    """Token ids of a row's `prompt` (a conversation) and of G completions drawn from the whole distribution."""
    prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=True)["input_ids"]
    drawing = {"do_sample": True, "temperature": settings.temperature, "top_k": 0, "top_p": 1.0}
    drawing |= {"num_return_sequences": settings.num_generations, "max_new_tokens": settings.max_new_tokens}
    sequences = model.generate(torch.tensor([prompt], device=model.device), **drawing)[:, len(prompt) :].tolist()
    eos = tokenizer.eos_token_id
    return prompt, [ids[: ids.index(eos) + 1] if eos in ids else ids for ids in sequences]


def collect(draw: Callable[[], list[Group]], settings: Settings) -> tuple[list[Group], list[list[Group]]]:
    """Draws until enough groups are valid. Returns the Q groups of the step, valid ones first, and every draw."""
    drawn = [draw()]
    while True:
        pool = [group for groups in drawn for group in groups if group.valid]
        if len(pool) / len(drawn[0]) >= settings.beta_th or len(drawn) == settings.max_draws:
            padding = [group for group in drawn[-1] if not group.valid]
            return (pool + padding)[: len(drawn[0])], drawn
        drawn.append(draw())


def alpha_of(batch: list[Group]) -> float:
    """Eq. 7: B / (B - M), counted in the batch that is trained on; 0 if no group is valid."""
    num_valid = sum(group.valid for group in batch)
    return len(batch) / num_valid if num_valid else 0.0


def advantages_of(batch: list[Group], f_norm: str) -> Tensor:
    """Eq. 6: [B, G] rewards less their group's mean, over F_norm."""
    rewards = torch.stack([group.rewards for group in batch])
    divisors = {"none": 1.0, "group": rewards.std(dim=1, keepdim=True) + 1e-4, "batch": rewards.std() + 1e-4}
    return (rewards - rewards.mean(dim=1, keepdim=True)) / divisors[f_norm]


def token_logps(model, group: Group, temperature: float) -> tuple[Tensor, Tensor]:
    """[G, T] log pi of the completions' tokens, and their mask. Causal attention never sees padding on the right."""
    lengths = torch.tensor([len(ids) for ids in group.completions])
    start, width = len(group.prompt), int(lengths.max())
    padded = [group.prompt + ids + [0] * (width - len(ids)) for ids in group.completions]
    inputs = torch.tensor(padded, device=model.device)
    logits = model(inputs).logits[:, start - 1 : -1] / temperature
    logps = logits.log_softmax(-1).gather(-1, inputs[:, start:, None]).squeeze(-1)
    return logps, (torch.arange(width) < lengths.unsqueeze(1)).to(logps)


def update(model, optimizer: torch.optim.Optimizer, batch: list[Group], settings: Settings) -> dict[str, float]:
    """One step of the optimiser on alpha times Eq. 5, group after group; the gradients add up."""
    alpha = alpha_of(batch) if settings.age else 1.0
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)  # not None: AdamW's momentum moves also when no group is valid
    total = 0.0
    for group, advantages in zip(batch, advantages_of(batch, settings.f_norm), strict=True):
        if group.valid:  # the advantages of the others are zero, hence their gradient
            logps, mask = token_logps(model, group, settings.temperature)
            loss = alpha * (-logps * advantages.to(logps).unsqueeze(1) * mask).sum() / mask.sum() / len(batch)
            loss.backward()
            total += loss.item()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
    optimizer.step()
    return {"alpha": alpha, "loss": total, "grad_norm": norm.item()}


def train(model, tokenizer, rows, reward, settings: Settings, num_steps: int, seed: int = 42, sample=sample):
    """Algorithm 1: trains `model` in place, yields the metrics of each step. `reward(row, text)` returns a number."""
    optimizer = torch.optim.AdamW(model.parameters(), settings.learning_rate, weight_decay=0.0)
    chunks = prompt_chunks(rows, settings.num_prompts, seed)

    def group_of(row: dict) -> Group:
        prompt, completions = sample(model, tokenizer, row, settings)
        texts = tokenizer.batch_decode(completions, skip_special_tokens=True)
        return Group(prompt, completions, torch.tensor([float(reward(row, text)) for text in texts]))

    for step in range(1, num_steps + 1):
        batch, drawn = collect(lambda: [group_of(row) for row in next(chunks)], settings)
        seen = torch.stack([group.rewards for group in drawn[0]])  # of the first draw: later ones are a biased sample
        metrics = update(model, optimizer, batch, settings)
        yield {"step": step, "reward": seen.mean().item(), "num_draws": len(drawn), **metrics}


if __name__ == "__main__":
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from gpg_repro.tiny import build_base, train_rows
    from gpg_repro.tiny.warmup import last_box

    scale, num_steps = ("smoke", 3) if "smoke" in sys.argv else ("tiny", 60)
    base = build_base(scale=scale)  # trained here, or found in the cache
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    torch.manual_seed(0)  # of sampling
    rows, right = train_rows("tiny_s1", 1024, seed=0), lambda row, text: last_box(text) == row["answer"]
    for metrics in train(model, tokenizer, rows, right, Settings(beta_th=0.6), num_steps):
        print("  ".join(f"{name} {value:.3g}" for name, value in metrics.items()), flush=True)
