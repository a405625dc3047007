"""Prompts of the training recipes, character for character as they ran (slips of grammar included)."""

OPEN_RS = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. The assistant "
    "first thinks about the reasoning process in the mind and then provides the user with the answer, and put your "
    "final answer within \\boxed{{}} . The reasoning process and answer are enclosed within <think> </think> and "
    "<answer> </answer> tags, respectively, i.e., <think> reasoning process here </think> <answer> answer here "
    "</answer>. Note that respond by English, NOT use other languages."
)
"""1.5B runs. The paper prints a version without the boxed clause; the recipe's is used. The doubled braces are real."""

PAPER_B3 = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. The assistant "
    "first thinks about the reasoning process in the mind and then provides the user with the answer. The reasoning "
    "process and answer are enclosed within <think> </think> and <answer> </answer> tags, respectively, i.e., <think> "
    "reasoning process here </think><answer> answer here </answer>"
)
"""As printed in Appendix B.3."""

OPEN_R1_THINK = (
    "You are a helpful AI Assistant, designed to provided well-reasoned and detailed responses. You FIRST think about "
    "the reasoning process as an internal monologue and then provide the user with the answer. The reasoning process "
    "MUST BE enclosed within <think> and </think> tags."
)
"""7B ablations (Tables 1, 10, 11, 12), SimpleRL settings."""

OPEN_R1_BOXED = (
    "You are a helpful AI Assistant, designed to provided well-reasoned and detailed responses. You FIRST think about "
    "the reasoning process as an internal monologue and then provide the user with the answer. Please reason step by "
    "step, and put your final answer within \\boxed{}."
)
"""The one released 7B recipe with lr 2e-6 and a constant schedule; which rows it made is not stated."""

SYSTEM_PROMPTS = {
    "open_rs": OPEN_RS,
    "paper_b3": PAPER_B3,
    "open_r1_think": OPEN_R1_THINK,
    "open_r1_boxed": OPEN_R1_BOXED,
}

TRAINED_WITH = ("open_rs", "open_r1_think", "open_r1_boxed")
"""Those that a released recipe has; ``paper_b3`` is printed only."""

QWEN_BOXED = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n{question}\nPlease reason step by "
    "step, and put your final answer within \\boxed{}.<|im_end|>\n<|im_start|>assistant\n"
)
"""The whole prompt of GPG-7B (Table 4) as SimpleRL-Zoo's rows hold it; ``{question}`` is where the question goes."""
