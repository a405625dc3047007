"""System prompts of the training recipes, character for character as they ran (slips of grammar included)."""

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

SYSTEM_PROMPTS = {"open_rs": OPEN_RS, "paper_b3": PAPER_B3}
