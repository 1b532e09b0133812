"""The faults that a check looks for: how bad each is, what it does to training, how to fix it.

What each does was read off SFTTrainer 1.16 and transformers 5.23; tests hold the main ones to them.

Used by lessons: 01.
"""

from __future__ import annotations

from typing import NamedTuple

from preflight.dataset_check.pair_rules import (
    NAMES,
    OTHERWISE,
    PAIR_ERRORS,
    PAIR_NOTES,
    PAIR_WARNINGS,
)


class Rule(NamedTuple):
    """How bad a kind of fault is, what it is and does, and how to fix it."""

    severity: str
    what: str
    fix: str


ERRORS = {
    "broken_line": (
        "Lines of the file that cannot be read as a row; load_dataset stops at the first.",
        "Fix or delete these lines. Row numbers in this report count the readable lines only.",
    ),
    "wrapped_rows": (
        "The rows stand in one object, under a key; load_dataset makes one row of it all.",
        "Name the key: load_dataset('json', data_files=..., field=...). Or write one row a line.",
    ),
    "empty_dataset": (
        "There are no rows; SFTTrainer stops with an empty StopIteration.",
        "Check the path, the split and any filter that ran before.",
    ),
    "unknown_format": (
        "No form for SFT is recognised in these columns.",
        "Make a 'text' column, or 'prompt' and 'completion', or 'messages', with dataset.map(...).",
    ),
    "mapping_needed": (
        "SFTTrainer does not train on these columns as they are meant.",
        "Run the mapping line of this report before training.",
    ),
    "format_differs": (
        "This split has another form than the first one.",
        "Bring all splits to one form before training.",
    ),
    "missing_column": (
        "A column that this form needs is not there (in these rows, or at all).",
        "Add or rename the column; rows without it: drop them with dataset.filter(...).",
    ),
    "json_column": (
        "load_dataset met values of several types in this column and keeps it as JSON: text that "
        "is itself JSON has become a dict, a list or a number, in sound rows too.",
        "Check the file itself, fix the values of the wrong type there, and load it again; or "
        "give load_dataset the features.",
    ),
    "text_as_other_type": (
        "load_dataset takes this text for dates, numbers or true and false, since all in the "
        "first part of the file looks like it: '007' becomes 7. SFTTrainer then stops, or trains "
        "on another text.",
        "Load it as it stands: Dataset.from_list([json.loads(line) for line in open(file)], "
        "on_mixed_types='use_json'), with the columns of the first row (features= would write "
        "'2024-02-07 00:00:00'); or of CSV Dataset.from_pandas(pandas.read_csv(file, dtype=str, "
        "keep_default_na=False)).",
    ),
    "load_stops": (
        "load_dataset takes the type of each field from the first part (10 MB of JSON, 10,000 rows "
        "of CSV, or the first of several files). At these rows it stops, and its error names no "
        "row.",
        "Bring the field to one type. Or read the file as one part: load_dataset('json', "
        "data_files=file, chunksize=os.path.getsize(file)); or of CSV Dataset.from_pandas("
        "pandas.read_csv(file, dtype=str, keep_default_na=False)).",
    ),
    "load_changes": (
        "load_dataset takes the type of each field from the first part (10 MB of JSON, 10,000 rows "
        "of CSV, or the first of several files). These values are of another type, and it turns "
        "them into that one without a word. Where JSON has text and something else, it also puts "
        "quotes around all texts of the field from this part on, in sound rows too.",
        "Bring the field to one type in the file.",
    ),
    "messages_as_text": (
        "A list of messages that stands there as text, as in CSV, which has no lists; SFTTrainer "
        "drops the row silently, or trains on brackets and quotes.",
        "Write the source as JSON lines: dataset.to_json(file). If the text is all you have, try "
        "json.loads or ast.literal_eval (neither reads what Dataset.to_csv writes).",
    ),
    "none_value": (
        "None where text is expected; SFTTrainer stops with an AttributeError that names no row.",
        "Drop the rows: dataset.filter(lambda row: row['completion'] is not None). In CSV, an "
        "empty cell, NA, null, nan and None are all read as None.",
    ),
    "empty_value": (
        "Empty text, or an empty list of messages: the model learns to say nothing.",
        "Drop the rows: dataset.filter(lambda row: row['completion'].strip()).",
    ),
    "wrong_type": (
        "A value of the wrong type, such as a number where text is expected.",
        "Convert (str(...), json.loads(...)) or drop the rows.",
    ),
    "mixed_forms": (
        "Text in some rows, messages in others, or other columns; SFTTrainer judges all rows by "
        "the first one.",
        "Bring all rows to one form, or drop the fewer.",
    ),
    "no_assistant": (
        "Conversations without an assistant turn: nothing to learn.",
        "Drop the rows, or rename the role if it stands under another name.",
    ),
    "unknown_role": (
        "Roles that chat templates do not know (known: system, developer, user, assistant, tool).",
        "Rename them, for example 'human' to 'user' and 'gpt' to 'assistant'.",
    ),
    "template_fails": (
        "The tokenizer's chat template refuses these conversations, with the error quoted.",
        "Do what the error asks; most want user and assistant in turn. Or choose a template that "
        "takes them.",
    ),
    "parts_not_read": (
        "Content is a list of parts, which this chat template leaves out, writes as code or "
        "refuses.",
        "Give text: content = ''.join(part['text'] for part in content), with the key that yours "
        "have.",
    ),
    "content_missing": (
        "Messages without content (such as a tool call), which this chat template refuses.",
        "Give each an empty one: 'content': ''.",
    ),
    "system_refused": (
        "This chat template takes no system message, or none with these roles.",
        "Put its text before the first user message.",
    ),
    "call_form": (
        "Tool calls in a short form, which this chat template refuses.",
        "Write {'type': 'function', 'function': {'name': ..., 'arguments': {...}}}.",
    ),
    "several_calls": (
        "Several tool calls in one message; this chat template takes one.",
        "Make a message of each call, with its answer from the tool after it.",
    ),
    "arguments_form": (
        "The arguments of tool calls are JSON text where this chat template takes a dict, or the "
        "other way round: it quotes them twice, writes them as code, or refuses them.",
        "Turn them round: json.loads(arguments), or json.dumps(arguments).",
    ),
    "role_not_read": (
        "The chat template leaves out messages of this role, or refuses them.",
        "Rename 'developer' to 'system'; for another role choose a template that writes it.",
    ),
    "calls_lost": (
        "The chat template leaves out tool calls (all, or all but the first of a message), or "
        "refuses them and what tools answer.",
        "Write calls as 'tool_calls': [{'type': 'function', 'function': {'name': ..., "
        "'arguments': {...}}}], one in a message; or choose a template that writes them.",
    ),
    "tools_lost": (
        "The chat template does not show the model the row's tools.",
        "Choose a template that writes tools, or describe them in the system message.",
    ),
    "reasoning_lost": (
        "The chat template leaves out reasoning that stands in a field of its own.",
        "Put it into the content, '<think>\\n' + reasoning + '\\n</think>\\n\\n' + content, or "
        "choose a template that writes it.",
    ),
    "text_lost": (
        "The chat template leaves words of these messages out, so the model never sees them.",
        "Look at tokenizer.apply_chat_template(row['messages'], tokenize=False), and choose "
        "another template or form.",
    ),
    "special_token_in_text": (
        "A special token is written out in the data; the tokenizer makes the real one of it, and "
        "a turn ends or begins there.",
        "Give chats a column chat_template_kwargs of {'sanitize_control_tokens': True}, or write "
        "the token otherwise, such as with a space in it.",
    ),
    "no_training_template": (
        "assistant_only_loss=True needs a chat template that marks the answers; this one does not, "
        "and TRL has none for it. SFTTrainer stops.",
        "Put {% generation %} and {% endgeneration %} around the answers in the template, or use "
        "prompt and completion.",
    ),
    "answers_need_chat": (
        "assistant_only_loss=True, and the rows are no messages; SFTTrainer stops.",
        "Leave assistant_only_loss out; of prompt and completion only the completion is learned.",
    ),
    "answer_not_learned": (
        "assistant_only_loss=True, and the chat template does not mark these answers: no loss.",
        "Put {% generation %} and {% endgeneration %} around all that the assistant says.",
    ),
    "no_chat_template": (
        "The data are messages, but the tokenizer has no chat template.",
        "Use the instruct model's tokenizer, or trl.clone_chat_template(model, tokenizer, source).",
    ),
    "no_eos": (
        "The tokenizer has no end-of-sequence token, which SFTTrainer appends to each row.",
        "Set it: tokenizer.eos_token = '...' (a token of its vocabulary).",
    ),
    "bad_unicode": (
        "Half of a surrogate pair (text cut in the middle of an emoji); tokenizers refuse it.",
        "Repair: text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace').",
    ),
    "completion_cut_away": (
        "The prompt alone fills max_length, so nothing of the answer is left; SFTTrainer drops "
        "such rows silently if it trains on answers only, and else trains on the prompt.",
        "Raise max_length, shorten the prompts, or drop the rows yourself so that you know.",
    ),
    "fully_masked": (
        "Every label is masked (-100), so the row teaches nothing; SFTTrainer drops it silently.",
        "Give the row a completion, or fix the column that masks it.",
    ),
    "label_out_of_range": (
        "Labels that are not among the model's classes or tokens; training stops with "
        "'IndexError: Target ... is out of bounds'.",
        "Count the classes again (num_labels), or drop rows marked -1 for 'no label'.",
    ),
    "token_out_of_range": (
        "Token ids that are not in the tokenizer's vocabulary.",
        "Tokenise again with the tokenizer of the model that you train.",
    ),
    "split_overlap": (
        "Rows that an earlier split also holds (but for upper case and spaces): the evaluation "
        "flatters the model.",
        "Drop these rows from this split.",
    ),
}
WARNINGS = {
    "preference_data": (
        "Preference data: each row has a better answer and a worse one. SFT learns the one that is "
        "chosen, and never sees the other.",
        "To learn from both, use TRL's DPOTrainer; for SFT, run the mapping. As pairs alone: "
        "check(..., trainer='dpo'), or --trainer dpo.",
    ),
    "unpaired_preference": (
        "Answers marked good (true) and bad (false). SFTTrainer ignores the mark, so that it would "
        "learn the bad answers, too.",
        "To learn from both, use TRL's KTOTrainer; for SFT, run the mapping, which keeps the good.",
    ),
    "media": (
        "Pictures, sound or film beside the text. With 'image' or 'images' SFTTrainer refuses a "
        "text-only model; audio and video it ignores.",
        "Pictures: a vision-language model (AutoModelForImageTextToText) with its AutoProcessor as "
        "processing_class; SFTTrainer then takes DataCollatorForVisionLanguageModeling. Sound and "
        "film: a model and a collator made for them. Text only: remove the column.",
    ),
    "prompt_overlap": (
        "Prompts that an earlier split also holds, with another answer.",
        "Split by prompt, so that no prompt stands in two splits.",
    ),
    "repeated_column": (
        "Several columns have one name; load_dataset keeps it for the first, and calls the second "
        "of 'text', say, 'text.1'.",
        "Give each column of the header a name of its own.",
    ),
    "duplicate": (
        "Rows that came before (but for upper case and spaces); they count twice in training.",
        "Drop them: pandas' drop_duplicates, or keep the first with dataset.select(...).",
    ),
    "conflicting_answers": (
        "The same prompt came before with another answer.",
        "Keep one answer for each prompt, unless both are right.",
    ),
    "assistant_first": (
        "The assistant speaks first; many chat templates refuse that.",
        "Drop the turn, or put the user's turn before it.",
    ),
    "repeated_role": (
        "Two turns in a row by the same speaker; many chat templates refuse that.",
        "Join the two turns into one.",
    ),
    "system_not_first": (
        "A system message that is not the first message; many chat templates refuse or move it.",
        "Move it to the front.",
    ),
    "ends_with_user": (
        "The last turn is not the assistant's: it has no answer, and the model learns to ask.",
        "Drop the last turn.",
    ),
    "completion_cut_partly": (
        "The answer runs over max_length: its end, with the end-of-sequence token, is cut off, "
        "and the model does not learn to stop.",
        "Raise max_length, or drop the rows.",
    ),
    "too_long": (
        "Rows of more tokens than max_length; SFTTrainer cuts the end off.",
        "Raise max_length (memory grows with it), split the rows, or use packing='bfd_split'.",
    ),
    "near_duplicate": (
        "Rows nearly the same as one before: three quarters of their runs of three words are. (The "
        "first 10,000 rows of each split are compared; wording that many rows share is left out.)",
        "Read both, and drop one, unless the difference is what you teach.",
    ),
    "answer_cut_off": (
        "Answers that end in the middle of a sentence or of a block of code, as where a limit of "
        "tokens cut them; the model learns to stop there.",
        "Make these answers anew with a higher limit, or drop the rows.",
    ),
    "prompt_repeated": (
        "The answer begins with all of the prompt; the model learns to repeat what it is asked.",
        "Cut the prompt off the answer: completion.removeprefix(prompt).",
    ),
    "placeholder": (
        "A placeholder that nobody filled in, such as [Your Name] or {{name}}; the model learns to "
        "write it.",
        "Fill it in, or drop the rows.",
    ),
    "secret": (
        "What looks like a key or a token that opens an account (not shown here); the model may "
        "write it out for others.",
        "Replace it in the data and, if it is real, revoke it now.",
    ),
    "personal_data": (
        "What looks like personal data: a card, bank, telephone or social security number, an "
        "e-mail address (not shown here). The model may write it out for others.",
        "Replace it with an invented one, such as name@example.com, or drop the rows.",
    ),
    "tool_call_mismatch": (
        "Calls of tools that do not fit the definitions in 'tools', or answers that fit no call; "
        "the model learns calls that will fail.",
        "Correct the call or the definition, or drop the rows.",
    ),
    "label_type": (
        "Labels of another type than most of their column; load_dataset turns the column into "
        "another type, or stops.",
        "Convert them, or drop the rows.",
    ),
    "wrongly_decoded": (
        "Text that was decoded wrongly, such as 'Ã©' for 'é', '&amp;' for '&', '\\u00e9' for 'é'.",
        "Read the file as UTF-8. Repair: ftfy.fix_text(text), html.unescape(text).",
    ),
    "control_character": (
        "Control characters (such as a zero byte, a terminal escape, a byte-order mark).",
        "Strip them: re.sub(r'[\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\x7f-\\x9f\\ufeff]', '', text).",
    ),
    "replacement_character": (
        "The replacement character U+FFFD: the file was not UTF-8, or was already damaged.",
        "Read the file in its own encoding, for example encoding='cp1252', and save it as UTF-8.",
    ),
    "prompt_ends_in_space": (
        "The prompt ends in a space, which joins the answer's first token, so the boundary "
        "between prompt and completion moves.",
        "Move the space to the start of the completion.",
    ),
    "boundary_moves": (
        "The prompt's last tokens change when the completion follows, so the model trains on "
        "another prompt than it sees in use.",
        "End the prompt at a token boundary: no space at its end, the space in the completion.",
    ),
    "thinking_lost": (
        "The chat template leaves out the reasoning of these answers, most that of all but the "
        "last, as it will in use; it is not trained on.",
        "Make a row of each answer, which ends with it; or choose a template that keeps all.",
    ),
    "call_text_lost": (
        "The chat template leaves out what stands in one message with a tool call.",
        "Choose a template that writes both, or make a message of its own of the text.",
    ),
    "nulls_filled": (
        "Nulls in the arguments or the definitions of tools. All objects of a column have the same "
        "keys, so datasets fills in null for those that only other rows have, and the chat "
        "template writes them.",
        "Make the dataset with Dataset.from_list(rows, on_mixed_types='use_json'), which keeps "
        "objects as they are.",
    ),
    "name_lost": (
        "The chat template leaves out the names of the speakers.",
        "Where they matter, write them into the content: 'Ann: ...'.",
    ),
    "indent_lost": (
        "The chat template strips the spaces that an answer begins with, such as code's indent.",
        "Put the answer's code between ``` lines, or complete it as prompt and completion text.",
    ),
    "no_end": (
        "The chat template writes nothing after the last answer, so that the model does not learn "
        "to stop.",
        "End the assistant's turn in the template with an end token, such as {{ eos_token }}.",
    ),
    "second_bos": (
        "The text begins with the beginning-of-sequence token, and the tokenizer puts another one "
        "before it.",
        "Train on 'messages' and leave the template to SFTTrainer, or take the token off: "
        "text.removeprefix(tokenizer.bos_token).",
    ),
    "bos_by_version": (
        "transformers 4 puts a beginning-of-sequence token before text as this tokenizer's file "
        "says, transformers 5 as its tokenizer.json has it, and here the two differ: the model "
        "sees other tokens where the other version runs.",
        "Train and use the model with one version of transformers, and save the tokenizer with it.",
    ),
    "second_end": (
        "The text ends in the end-of-sequence token and a line break; SFTTrainer appends another.",
        "Train on 'messages' and leave the template to SFTTrainer, or take the break off: "
        "text.rstrip().",
    ),
    "training_template_differs": (
        "With assistant_only_loss=True SFTTrainer takes a chat template of TRL's, which writes "
        "these rows otherwise than the tokenizer's own does in use.",
        "Use the same in use: tokenizer.chat_template = "
        "trl.chat_template_utils.get_training_chat_template(tokenizer); or prompt and completion.",
    ),
    "header_under_loss": (
        "With assistant_only_loss=True the model is also trained on what stands before the answer, "
        "such as the header with the role, which in use it is given.",
        "Put {% generation %} after the header in the template, or use prompt and completion.",
    ),
    "stop_not_learned": (
        "With assistant_only_loss=True the token that ends an answer has no loss, so that the "
        "model does not learn to stop.",
        "Put {% endgeneration %} after the end token in the template.",
    ),
    "pad_is_eos": (
        "The tokenizer pads with the end-of-sequence token (or has no pad token, and eos stands "
        "in). SFTTrainer's collator masks padding by position, so it still learns eos; "
        "transformers' DataCollatorForLanguageModeling masks every label equal to pad, so the "
        "model never learns to stop.",
        "Use a pad token of its own, such as an unused one of the vocabulary, or keep "
        "SFTTrainer's own collator.",
    ),
}
NOTES = {
    "date_in_rows": (
        "The chat template writes the date of today into the rows.",
        "Give them one of yours if the template takes it, as Llama 3.2's does: a column "
        "chat_template_kwargs of {'date_string': '26 Jul 2024'}; and the same in use.",
    ),
    "sampled": (
        "Not each row was rendered and tokenised: the first 2,000 were, those that may be too "
        "long, those of a rare shape or with special markup, and one in a hundred of the others. "
        "The rest is taken to be like them. All other faults were looked for in all rows.",
        "To look at all: check(..., every_row=True), or --every-row; it takes about four times as "
        "long.",
    ),
    "not_checked": (
        "Not checked: lengths, truncation, masks, the boundary, the chat template, the pad token.",
        "Pass a tokenizer: check(dataset, tokenizer).",
    ),
}

# A report names the faults in this order.
RULES = {
    code: Rule(severity, what, fix)
    for severity, rules in (
        ("error", ERRORS | PAIR_ERRORS),
        ("warning", WARNINGS | PAIR_WARNINGS),
        ("info", NOTES | PAIR_NOTES),
    )
    for code, (what, fix) in rules.items()
}


def rules_of(trainer: str) -> dict[str, Rule]:
    """Return what the faults do to the training of a trainer: sft, dpo or grpo."""
    name = NAMES[trainer]
    rules = {
        code: Rule(rule.severity, *(text.replace(NAMES["sft"], name) for text in rule[1:]))
        for code, rule in RULES.items()
    }
    for code, texts in OTHERWISE.get(trainer, {}).items():
        rules[code] = Rule(RULES[code].severity, *texts)
    return rules
