"""Pretrain the pocket models from scratch on the project's own corpus.

    python data/build/pretrain.py                 pocket-llama (about an hour on two cores)
    python data/build/pretrain.py --model t5      pocket-t5, with the tokenizer of pocket-llama
    python data/build/pretrain.py --documents 20000 --output build/trial       a trial
    python data/build/pretrain.py --resume        go on after an interruption

It prints, as it goes, the held-out loss and an in-context copying score: the share of questions
about unseen messages whose greedy answer is the value that stands in the message.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import random
import time
from pathlib import Path

import corpus
import torch
import world
from datasets import Dataset
from denoising import SENTINELS, DenoisingCollator, sentinel
from optimizer import MuonAndAdamW
from tokenizer import CONTEXT, train_tokenizer
from transformers import (
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    get_cosine_with_min_lr_schedule_with_warmup,
    set_seed,
)

from course_utils.metrics import json_record

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "data" / "models"
PROBE_SEED = 2
RECORDS = "whole records to JSON"
VOCAB_SIZE = 3072
DOCUMENTS = {"llama": 180_000, "t5": 100_000}
LEARNING_RATES = {"llama": 3e-3, "t5": 1e-3}
TOKENIZER_DOCUMENTS = 20_000
BATCH = 32
POOL = 32  # batches
CHAIN_SHARE = 0.12  # documents that are joined to rows of the context's full length


def pocket_config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """Return the pocket model's shape: input widths are multiples of 64, output widths of 32.

    bitsandbytes' CPU kernels are wrong for other widths.
    """
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )


def make_llama(texts: list[str]) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Return an untrained pocket Llama and a tokenizer trained on the corpus."""
    tokenizer = train_tokenizer(texts[-TOKENIZER_DOCUMENTS:], VOCAB_SIZE)
    return LlamaForCausalLM(pocket_config(tokenizer)), tokenizer


def make_t5() -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Return an untrained pocket T5 and the pocket Llama's tokenizer with T5's sentinels."""
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "pocket-llama")
    tokenizer.chat_template = None
    tokenizer.add_tokens([sentinel(number) for number in range(SENTINELS)], special_tokens=True)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=192,
        d_kv=32,
        num_heads=6,
        d_ff=512,
        num_layers=3,
        num_decoder_layers=3,
        dropout_rate=0.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )
    return T5ForConditionalGeneration(config), tokenizer


def encoded(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[list[int]]:
    """Return the tokens of each document, with its end, cut to the context's length."""
    ids: list[list[int]] = []
    for start in range(0, len(texts), 4096):
        batch = [text + corpus.END for text in texts[start : start + 4096]]
        ids += tokenizer(batch, truncation=True, max_length=CONTEXT)["input_ids"]
    return ids


def training_rows(documents: list[list[int]], seed: int) -> Dataset:
    """Return rows in the order of training: batches of like length, in the order of the corpus.

    Some documents are joined to rows of full length, so that every position is trained. Batches of
    like length waste little on padding; they are shuffled within a pool of `POOL` batches.
    """
    rng = random.Random(seed)
    rows: list[list[int]] = []
    chain: list[int] = []
    for ids in documents:
        if rng.random() > CHAIN_SHARE:
            rows.append(ids)
        elif len(chain) + len(ids) > CONTEXT:
            rows.append(chain)
            chain = ids
        else:
            chain = chain + ids
    ordered: list[list[int]] = []
    for start in range(0, len(rows), POOL * BATCH):
        pool = sorted(rows[start : start + POOL * BATCH], key=len)
        batches = [pool[i : i + BATCH] for i in range(0, len(pool), BATCH)]
        rng.shuffle(batches)
        ordered += [row for batch in batches for row in batch]
    return Dataset.from_dict({"input_ids": ordered})


def copying_probe() -> list[tuple[str, str, str]]:
    """Return ``(prompt, answer, what is copied)``: questions on messages, and a record restated."""
    rng = random.Random(PROBE_SEED)
    probe = []
    for _ in range(60):
        message = world.write_message(world.corpus_case(rng), rng)
        for field in world.FIELDS:
            prompt = f"Message: {message.text}\nQuestion: {corpus.QUESTIONS[field][0]}\nAnswer:"
            probe.append((prompt, f" {getattr(message.case, field)}", field))
    for _ in range(60):
        record = world.corpus_case(rng).record()
        lines = "\n".join(f"{key}: {value}" for key, value in record.items())
        probe.append((f"{lines}\nJSON:", f" {json.dumps(record)}", RECORDS))
    return probe


@torch.inference_mode()
def copying_scores(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, probe: list[tuple[str, str, str]]
) -> dict[str, float]:
    """Return the share of right answers by greedy decoding, by what is copied."""
    hits: dict[str, list[bool]] = {}
    # The encoder-decoder is asked to fill a gap at the end, and writes the gap's mark first.
    mark = sentinel(0) if model.config.is_encoder_decoder else ""
    for start in range(0, len(probe), 120):
        part = probe[start : start + 120]
        batch = tokenizer(
            [p + mark + (corpus.END if mark else "") for p, _, _ in part],
            return_tensors="pt",
            padding=True,
            padding_side="left",
        ).to(model.device)
        length = max(len(tokenizer(answer)["input_ids"]) for _, answer, _ in part) + 2
        output = model.generate(**batch, max_new_tokens=length, do_sample=False)
        for (_, answer, kind), ids in zip(part, output, strict=True):
            begin = 2 if mark else batch["input_ids"].shape[1]
            said = tokenizer.decode(ids[begin:])
            line = said.split(corpus.END)[0].split("\n")[0]
            hits.setdefault(kind, []).append(line == answer)
            if kind == RECORDS:
                hits.setdefault("their values", []).extend(values_copied(line, answer))
    return {kind: round(sum(right) / len(right), 3) for kind, right in hits.items()}


def values_copied(said: str, answer: str) -> list[bool]:
    """Return for each value of the record `answer` whether `said` has it under its key."""
    record = json_record(said)
    expected = json.loads(answer)
    if record is None:
        return [False] * len(expected)
    return [record.get(key) == value for key, value in expected.items()]


class CausalCollator(DataCollatorForLanguageModeling):
    """Pads on the right and leaves the attention mask out: no token looks at what comes after it.

    Without a mask, attention takes a faster path.
    """

    def torch_call(self, examples: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        batch = super().torch_call(examples)
        del batch["attention_mask"]
        return batch


class CopyingScore(TrainerCallback):
    """Prints the copying scores after each evaluation."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self.probe = copying_probe()

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        model = kwargs["model"]
        model.eval()
        scores = copying_scores(model, self.tokenizer, self.probe)
        model.train()
        tokens = state.num_input_tokens_seen
        print(
            f"step {state.global_step}, {tokens / 1e6:.1f}M tokens, copying: {scores}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", choices=("llama", "t5"), default="llama")
    parser.add_argument("--documents", type=int, help="documents to train on, once each")
    parser.add_argument("--output", type=Path, help="default: data/models/pocket-MODEL")
    parser.add_argument("--work", type=Path, help="for checkpoints; default: build/pretrain-MODEL")
    parser.add_argument("--learning-rate", type=float, help="default: 3e-3 for llama, 1e-3 for t5")
    parser.add_argument("--save-steps", type=int, default=500, help="steps between checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    options = parser.parse_args()
    output = options.output or MODELS / f"pocket-{options.model}"
    learning_rate = options.learning_rate or LEARNING_RATES[options.model]
    work = options.work or ROOT / "build" / f"pretrain-{options.model}"

    started = time.time()
    plain = corpus.PLAIN_PRELUDE if options.model == "t5" else 0
    texts = corpus.training_documents(options.documents or DOCUMENTS[options.model], plain)
    set_seed(options.seed)
    model, tokenizer = make_llama(texts) if options.model == "llama" else make_t5()
    train = training_rows(encoded(tokenizer, texts), options.seed)
    heldout = Dataset.from_dict({"input_ids": encoded(tokenizer, corpus.heldout_documents())})
    tokens = sum(map(len, train["input_ids"]))
    print(f"{model.num_parameters():,} parameters")
    print(f"{len(texts):,} documents, {len(train):,} rows, {tokens:,} tokens", flush=True)

    cuda = torch.cuda.is_available()
    if options.model == "llama":
        collator = CausalCollator(tokenizer, mlm=False, pad_to_multiple_of=8)
    else:
        collator = DenoisingCollator(tokenizer, options.seed)
    arguments = TrainingArguments(
        output_dir=str(work),
        num_train_epochs=1,
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=64,
        max_grad_norm=1.0,
        bf16=True,
        use_cpu=not cuda,
        train_sampling_strategy="sequential",
        eval_strategy="steps",
        eval_steps=500,
        logging_steps=50,
        save_steps=options.save_steps,
        save_total_limit=2,
        include_num_input_tokens_seen="all",
        seed=options.seed,
        report_to="none",
    )
    optimizer = MuonAndAdamW(model, learning_rate)
    schedule = get_cosine_with_min_lr_schedule_with_warmup(
        optimizer,
        num_warmup_steps=100,
        num_training_steps=math.ceil(len(train) / BATCH),
        min_lr_rate=0.02,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=train,
        eval_dataset=heldout,
        data_collator=collator,
        optimizers=(optimizer, schedule),
        callbacks=[CopyingScore(tokenizer)],
    )
    trainer.train(resume_from_checkpoint=options.resume or None)
    # The last step is followed by an evaluation.
    loss = next(log["eval_loss"] for log in trainer.state.log_history[::-1] if "eval_loss" in log)

    if options.model == "llama":
        model.generation_config.update(do_sample=False, pad_token_id=tokenizer.pad_token_id)
    model.to(torch.bfloat16).save_pretrained(output)
    tokenizer.save_pretrained(output)
    facts = {
        "parameters": model.num_parameters(),
        "documents": len(texts),
        "tokens": tokens,
        "heldout_loss": round(loss, 4),
        "learning_rate": learning_rate,
        "seed": options.seed,
        "hardware": torch.cuda.get_device_name()
        if cuda
        else f"{(cores := torch.get_num_threads())} CPU core{'s' if cores > 1 else ''}",
        "python": platform.python_version(),
        "torch": torch.__version__.split("+")[0],
        "minutes": round((time.time() - started) / 60, 1),
    }
    (output / "training.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
