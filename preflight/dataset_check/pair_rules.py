"""The faults of pairs of answers and of prompts with rewards; their severity as in `rules`.

What each does was read off DPOTrainer, KTOTrainer and GRPOTrainer of TRL 1.16.

Used by lessons: 01.
"""

from __future__ import annotations

PAIR_ERRORS = {
    "no_shared_prompt": (
        "There is no prompt column, and the better and the worse answer do not begin alike, so "
        "DPOTrainer finds no prompt in them: it stops at messages, and trains on text without one.",
        "Give a column prompt, or put the same prompt before both answers.",
    ),
    "equal_answers": (
        "The chosen answer is the rejected one: both terms of the loss cancel, no gradient.",
        "Drop the rows: dataset.filter(lambda row: row['chosen'] != row['rejected']).",
    ),
    "equal_rendered": (
        "The two answers differ, but their tokens do not (the chat template or the tokenizer "
        "leaves out where they differ): no gradient.",
        "Drop the rows, or choose a template that writes the difference.",
    ),
    "equal_truncated": (
        "The two answers differ only after max_length tokens, where DPOTrainer cuts both: no "
        "gradient.",
        "Raise max_length, or drop the rows.",
    ),
    "reversed_pair": (
        "The same two answers came before the other way round: what one row teaches, the other "
        "takes back.",
        "Keep the one that is right, or drop both.",
    ),
    "scores_reversed": (
        "The score of the chosen answer is below that of the rejected one.",
        "Exchange the two answers, or drop the rows; check that a high score means good.",
    ),
    "prompt_answered": (
        "The prompt ends with an assistant turn. GRPOTrainer opens another one after it, and the "
        "model is rewarded for what follows its answer.",
        "Take the last turn off: row['prompt'][:-1]; keep it in a column of its own for rewards.",
    ),
    "column_clash": (
        "Columns whose names GRPOTrainer itself gives to reward functions. With prompts and "
        "completions the first step stops ('got multiple values for keyword argument'); the "
        "others are overwritten.",
        "Rename the columns: dataset.rename_column('completions', 'answers').",
    ),
}
PAIR_WARNINGS = {
    "nearly_equal_answers": (
        "The two answers differ in spaces or upper case only; that is all the pair teaches.",
        "Drop the rows, unless this is what you teach.",
    ),
    "empty_rejected": (
        "The rejected answer is empty: all that the pair teaches is to say something.",
        "Drop the rows: dataset.filter(lambda row: row['rejected'].strip()).",
    ),
    "scores_equal": (
        "Both answers have the same score, so that which one is chosen is chance.",
        "Drop the rows: dataset.filter(lambda row: row['score_chosen'] > row['score_rejected']).",
    ),
    "length_bias": (
        "One side is longer almost always: the model learns the length first, whatever else the "
        "pairs teach.",
        "Balance the pairs by length, or judge by a measure that length does not change; "
        "DPOConfig(ld_alpha=...) and loss_type='sigmoid_norm' weigh length less.",
    ),
    "same_answer": (
        "One side is nearly always the same text: the model learns that text, not what makes an "
        "answer good.",
        "Take the worse answers from the model's own, one to each prompt.",
    ),
    "told_apart": (
        "One outward sign tells the two sides apart in nearly all pairs; the loss falls by that "
        "alone.",
        "If the sign is what you teach, train on the chosen answers with SFT, which is cheaper; "
        "else take worse answers of the same form.",
    ),
    "one_label": (
        "All answers have the same mark: there is no good one to hold against a bad one, or the "
        "other way round.",
        "Check the column. Of good answers alone SFT learns; KTOTrainer needs both.",
    ),
    "column_not_passed": (
        "Columns that GRPOTrainer keeps from the reward functions, by their names.",
        "Rename them: dataset.rename_column('completion', 'answer').",
    ),
    "settings_not_passed": (
        "GRPOTrainer gives the chat template no settings of a row: these columns reach the reward "
        "functions only.",
        "Give them for all rows: GRPOTrainer(tools=[...]), GRPOConfig(chat_template_kwargs={...}).",
    ),
    "gold_missing": (
        "Most rows have something in this column, and these have nothing; a reward that compares "
        "with it gets None or ''.",
        "Fill it in, or drop the rows; or let the reward return None for them.",
    ),
    "answer_in_prompt": (
        "The prompt holds the answer that is to be rewarded: copying it is enough.",
        "Cut it off the prompt.",
    ),
}
PAIR_NOTES = {
    "reward_columns": (
        "What GRPOTrainer gives each reward function next to prompts and completions: a list of "
        "these columns' values, one for each completion. It makes a prompt's answers itself and "
        "reads no answer by itself.",
        "Write def reward(completions, answer, **kwargs), with the columns' own names.",
    ),
}
# What another trainer than SFTTrainer does at a fault that it shares with it.
OTHERWISE = {
    "dpo": {
        "unknown_format": (
            "No two answers are recognised in these columns.",
            "Make the columns prompt, chosen and rejected with dataset.map(...).",
        ),
        "mapping_needed": (
            "DPOTrainer does not take these columns as they are.",
            "Run the mapping line of this report before training.",
        ),
        "messages_as_text": (
            "A list of messages that stands there as text, as in CSV, which has no lists; "
            "DPOTrainer trains on brackets and quotes.",
            "Write the source as JSON lines: dataset.to_json(file).",
        ),
        "completion_cut_away": (
            "The prompt alone fills max_length; DPOTrainer drops such rows silently.",
            "Raise max_length, shorten the prompts, or drop the rows yourself so that you know.",
        ),
        "completion_cut_partly": (
            "An answer runs over max_length: its end, with the end-of-sequence token, is cut off.",
            "Raise max_length, or drop the rows.",
        ),
        "too_long": (
            "Rows of more tokens than max_length; DPOTrainer cuts the end off.",
            "Raise max_length (memory grows with it), or drop the rows.",
        ),
    },
    "grpo": {
        "missing_column": (
            "A column that this trainer needs is not there (in these rows, or at all): it stops "
            "with KeyError: 'prompt'.",
            "Add or rename the column: dataset.rename_column('question', 'prompt').",
        ),
        "empty_value": (
            "An empty prompt: nothing is asked.",
            "Drop the rows: dataset.filter(lambda row: len(row['prompt']) > 0).",
        ),
        "none_value": (
            "None where a prompt is expected; GRPOTrainer stops in the step that meets it.",
            "Drop the rows: dataset.filter(lambda row: row['prompt'] is not None).",
        ),
        "duplicate": (
            "Prompts that came before (but for upper case and spaces); they count twice.",
            "Drop them, unless you mean it.",
        ),
        "split_overlap": (
            "Prompts that an earlier split also holds: the evaluation flatters the model.",
            "Drop these rows from this split.",
        ),
        "too_long": (
            "Prompts of more tokens than max_length. GRPOTrainer cuts no prompt (max_prompt_length "
            "is gone): each goes whole, num_generations times.",
            "Drop the rows, or make sure that memory and the model's context are enough.",
        ),
        "mapping_needed": (
            "GRPOTrainer does not take these columns as they are.",
            "Run the mapping line of this report before training.",
        ),
    },
}
NAMES = {"sft": "SFTTrainer", "dpo": "DPOTrainer", "grpo": "GRPOTrainer"}
