"""The protocol shared by the five math benchmarks of Tables 1, 3, 4 and 10-12.

Zero-shot, one sample per problem, no system prompt (the training prompts are not used at test time), model's own chat
template. The prompt is the one of open-rs's lighteval tasks, character for character: its two blanks and the missing
article are part of the published protocol, and ``prompts_hash`` must reproduce the hashes of public result files.
"""

from eval_harness.benchmarks.base import DecodingDefaults

MATH_PROMPT = r"""Solve the following math problem efficiently and clearly.  The last line of your response should be of the following format: 'Therefore, the final answer is: $\boxed{ANSWER}$. I hope it is correct' (without quotes) where ANSWER is just the final number or expression that solves the problem. Think step by step before answering.

{problem}"""  # noqa: E501

MATH_PROMPT_ORIGIN = "open-rs evaluation tasks for lighteval (documented command of the release)"

# The documented command asks for 32,768 new tokens in a context of 32,768, so the effective limit is the context minus
# the prompt. Settings of the 7B rows are not stated anywhere; see docs/benchmarks.md.
MATH_DECODING = DecodingDefaults(temperature=0.6, top_p=0.95, max_new_tokens=32768)
