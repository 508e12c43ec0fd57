import json
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from lib.data.pictures import open_image
from lib.model import generate
from lib.model.finite import NotFinite
from lib.model.generate import Query, SeededSampling
from lib.model.llava import add_lora, load
from lib.model.packing import Features
from lib.model.settings import Evaluation
from lib.unlearning.settings import Unlearning

SETTINGS = Evaluation(max_new_tokens=16, batch=16)


@pytest.fixture
def queries(world):
    """Questions of unlike length, with and without a picture, in no order."""
    asked = []
    for number, record in enumerate(world.train[:4]):
        sets = record.sets()
        for name in ("forget", "prompt decouple", "retain image", "retain text"):
            image, pairs = sets[name]
            asked += [Query(None if name == "retain text" else image, pair.question, 100 * number)
                      for pair in pairs[:2]]
    return [asked[i] for i in np.random.default_rng(0).permutation(len(asked))]


def ask(llava, queries, settings=SETTINGS, sampled=False):
    return generate.answer(*llava, Features(*llava), queries, settings, sampled)


def alone(llava, query, settings):
    """One query as transformers' documentation does it: processor, pixel values, generate."""
    model, processor = llava
    picture = [] if query.image is None else [{"type": "image"}]
    said = [{"role": "user", "content": [*picture, {"type": "text", "text": query.question}]}]
    text = processor.apply_chat_template(said, add_generation_prompt=True)
    image = None if query.image is None else open_image(query.image)
    inputs = processor(images=image, text=text, return_tensors="pt")
    out = model.generate(**inputs, max_new_tokens=settings.max_new_tokens, do_sample=False)
    new = out[0, inputs.input_ids.shape[1] :]
    return processor.decode(new, skip_special_tokens=True).strip()


def test_batched_answers_are_those_that_transformers_gives_one_by_one(llava, queries):
    expected = [alone(llava, query, SETTINGS) for query in queries]
    assert ask(llava, queries) == expected
    assert len(set(expected)) > 3, "a model that always says the same would prove little"
    assert len({len(answer.split()) for answer in expected}) > 2


@pytest.mark.parametrize("batch", [1, 3, 5, 64])
@pytest.mark.parametrize("sampled", [False, True])
def test_an_answer_does_not_depend_on_its_batch(llava, queries, batch, sampled):
    expected = ask(llava, queries, sampled=sampled)
    assert ask(llava, queries, replace(SETTINGS, batch=batch), sampled) == expected


@pytest.mark.parametrize("sampled", [False, True])
def test_answers_come_in_the_order_of_their_queries(llava, queries, sampled):
    expected = dict(zip(queries, ask(llava, queries, sampled=sampled), strict=True))
    turned = queries[::-1] + queries[3:5]
    assert ask(llava, turned, sampled=sampled) == [expected[query] for query in turned]


def test_no_query_gets_no_answer(llava):
    assert ask(llava, []) == []


def test_queries_without_any_picture_are_answered(llava, queries):
    texts = [query for query in queries if query.image is None]
    assert ask(llava, texts) == [alone(llava, query, SETTINGS) for query in texts]


def test_an_answer_ends_where_the_model_ends_it_or_at_the_limit(llava, queries):
    whole, cut = ask(llava, queries), ask(llava, queries, replace(SETTINGS, max_new_tokens=3))
    tokenizer = llava[1].tokenizer
    for long, short in zip(whole, cut, strict=True):
        assert len(tokenizer(f" {short}").input_ids) <= 3
        assert long.startswith(short)
        assert not any(token in long for token in ("</s>", "<pad>", "<image>"))
    assert any(answer.endswith(".") for answer in whole)


def test_progress_counts_the_answers(llava, queries):
    told = []
    generate.answer(*llava, Features(*llava), queries, replace(SETTINGS, batch=5),
                    report=told.append)
    assert told == sorted(told)
    assert told[-1] == len(queries)
    assert max(np.diff([0, *told])) <= 5


def test_an_adapter_answers_for_itself_merged_or_not(llava, queries):
    model, processor = llava
    before = ask(llava, queries)
    adapted = add_lora(model, Unlearning(lora_rank=4))
    assert ask((adapted, processor), queries) == before
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    after = ask((adapted, processor), queries)
    assert after != before
    adapted.merge_adapter()
    assert ask((adapted, processor), queries) == after


def out_of_memory_beyond(rows, monkeypatch):
    """Generation that a GPU with room for so many rows would do; returns the sizes asked for."""
    sizes, whole = [], generate._generate

    def limited(model, tokenizer, embeds, *details):
        sizes.append(len(embeds))
        if len(embeds) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return whole(model, tokenizer, embeds, *details)

    monkeypatch.setattr(generate, "_generate", limited)
    return sizes


@pytest.mark.parametrize("sampled", [False, True])
def test_a_batch_that_is_too_large_is_halved_and_nothing_is_lost(llava, queries, sampled,
                                                                 monkeypatch):
    expected, kept = ask(llava, queries, sampled=sampled), {}
    sizes = out_of_memory_beyond(2, monkeypatch)
    found = generate.answer(*llava, Features(*llava), queries, SETTINGS, sampled, keep=kept.update)
    assert found == expected
    assert kept == dict(enumerate(expected))
    assert sum(size > 2 for size in sizes) <= 3, "the batches after it begin with the smaller size"


def test_one_answer_that_is_too_large_is_an_error(llava, queries, monkeypatch):
    out_of_memory_beyond(0, monkeypatch)
    with pytest.raises(torch.OutOfMemoryError):
        ask(llava, queries)


def test_an_open_number_of_answers_at_once_changes_no_answer(llava, queries):
    assert ask(llava, queries, replace(SETTINGS, batch=None)) == ask(llava, queries)


# Ends, and numbers that are not finite.


@pytest.fixture
def real(tiny_real):
    return load(tiny_real.model)


TWO = [Query(None, "What is a stew?", 1), Query(None, "Who eats it?", 2)]


def test_an_answer_ends_at_each_token_that_the_generation_config_names(real):
    model, processor = real
    brief = replace(SETTINGS, max_new_tokens=5)
    whole = ask(real, TWO, brief)
    words = [int(word.removeprefix("unused")) for word in whole[0].split()]  # tiny_llava.tokenizer
    assert len(set(words)) == 5
    for end, left in ((words[2], 2), (words[1], 1), (2, 5)):
        model.generation_config.eos_token_id = [2, end]
        assert ask(real, TWO[:1], brief)[0].split() == whole[0].split()[:left]
    assert generate._ends(model, processor.tokenizer) == [2]
    model.generation_config.eos_token_id = None
    assert ask(real, TWO, brief) == whole


def test_how_a_folder_wants_answers_drawn_is_not_asked(real, tiny_real, tmp_path):
    wanted = {"repetition_penalty": 1.5, "no_repeat_ngram_size": 1, "temperature": 0.2,
              "forced_eos_token_id": 2, "min_new_tokens": 9, "suppress_tokens": [*range(3, 9000)]}
    folder = shutil.copytree(tiny_real.model, tmp_path / "model")
    known = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(known | wanted))
    assert ask(load(folder), TWO) == ask(real, TWO)


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_said_and_are_no_answer(real, sampled, value):
    real[0].lm_head.weight.data[7] = value
    with pytest.raises(NotFinite, match="logits are not finite in 2 of 2 answers"):
        ask(real, TWO, sampled=sampled)


def test_a_token_that_is_ruled_out_is_no_reason_to_stop():
    watch = generate.Watch()
    scores = torch.tensor([[0.0, -torch.inf], [0.0, 1.0]])
    assert watch(None, scores) is scores
    watch.check()
    watch(None, torch.tensor([[0.0, 1.0], [-torch.inf, -torch.inf]]))
    watch(None, scores)
    with pytest.raises(NotFinite, match="1 of 2"):
        watch.check()


# Sampling.


def test_a_sample_s_randomness_is_its_key_s(llava, queries):
    one = [replace(query, key=1) for query in queries]
    first, again = (ask(llava, one, sampled=True) for _ in range(2))
    other = ask(llava, [replace(query, key=2) for query in queries], sampled=True)
    assert first == again
    assert sum(a != b for a, b in zip(first, other, strict=True)) > len(queries) / 4


def test_torch_s_own_seed_plays_no_part(llava, queries):
    torch.manual_seed(1)
    first = ask(llava, queries, sampled=True)
    torch.manual_seed(2)
    assert ask(llava, queries, sampled=True) == first


def test_sampling_differs_from_the_greedy_answer(llava, queries):
    many = [replace(queries[0], key=key) for key in range(40)]
    greedy, *_ = ask(llava, queries[:1])
    answers = Counter(ask(llava, many, sampled=True))
    assert len(answers) > 5
    assert greedy in ask(llava, many, replace(SETTINGS, temperature=0.01), sampled=True)


def test_at_temperature_zero_s_end_sampling_is_greedy(llava, queries):
    cold = replace(SETTINGS, temperature=1e-6)
    assert ask(llava, queries, cold, sampled=True) == ask(llava, queries)


def nucleus(logits, temperature, top_p):
    """By hand: the likeliest tokens that together reach top_p, their probabilities made one."""
    order = logits.div(temperature).softmax(-1).sort(descending=True)
    before = order.values.cumsum(-1) - order.values
    kept = torch.where(before < top_p, order.values, 0.0)
    return torch.zeros_like(logits).scatter(-1, order.indices, kept / kept.sum())


def chi_square_p(counts, probabilities):
    """How likely so large a deviation is by chance; counts, probabilities: [outcomes]."""
    expected = probabilities * counts.sum()
    statistic = ((counts - expected) ** 2 / expected).sum()
    half = torch.tensor((len(counts) - 1) / 2, dtype=torch.float64)
    return torch.special.gammaincc(half, statistic / 2).item()


LOGITS = torch.tensor([2.0, -1.0, 1.5, 0.3, 0.0, -3.0, 1.0, -0.5])
KEYS = 20000


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 0.9), (1.0, 1.0), (0.7, 0.8),
                                                    (2.0, 0.95)])
def test_samples_over_many_keys_are_distributed_as_the_nucleus(temperature, top_p):
    sampler = SeededSampling(range(KEYS), temperature, top_p)
    drawn = sampler(None, LOGITS.expand(KEYS, -1)).argmax(-1)
    expected = nucleus(LOGITS.double(), temperature, top_p)
    counts = torch.bincount(drawn, minlength=len(LOGITS)).double()
    assert not counts[expected == 0].any()
    assert (expected == 0).any() == (top_p < 1), "the nucleus has to leave something out"
    assert chi_square_p(counts[expected > 0], expected[expected > 0]) > 0.001


def test_the_chi_square_would_notice_another_distribution():
    sampler = SeededSampling(range(KEYS), 1.0, 0.9)
    drawn = sampler(None, LOGITS.expand(KEYS, -1)).argmax(-1)
    wrong = nucleus(LOGITS.double(), 1.1, 0.9)
    counts = torch.bincount(drawn, minlength=len(LOGITS)).double()
    assert chi_square_p(counts[wrong > 0], wrong[wrong > 0]) < 1e-6


def test_the_tokens_of_one_answer_are_drawn_independently():
    sampler = SeededSampling(range(KEYS), 1.0, 0.9)
    first, second = (sampler(None, LOGITS.expand(KEYS, -1)).argmax(-1) for _ in range(2))
    expected = nucleus(LOGITS.double(), 1.0, 0.9)
    pairs = torch.outer(expected, expected).flatten()
    counts = torch.bincount(first * len(LOGITS) + second, minlength=len(pairs)).double()
    assert chi_square_p(counts[pairs > 0], pairs[pairs > 0]) > 0.001


def test_neighbouring_keys_are_unrelated():
    sampler = SeededSampling(range(KEYS), 1.0, 0.9)
    drawn = sampler(None, LOGITS.expand(KEYS, -1)).argmax(-1)
    expected = nucleus(LOGITS.double(), 1.0, 0.9)
    pairs = torch.outer(expected, expected).flatten()
    counts = torch.bincount(drawn[::2] * len(LOGITS) + drawn[1::2], minlength=len(pairs)).double()
    assert chi_square_p(counts[pairs > 0], pairs[pairs > 0]) > 0.001


def test_a_row_s_noise_is_its_own_whatever_stands_beside_it():
    scores = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    together = SeededSampling([7, 8, 9, 10], 1.0, 0.9)(None, scores)
    for row, key in enumerate([7, 8, 9, 10]):
        assert torch.equal(SeededSampling([key], 1.0, 0.9)(None, scores[row : row + 1])[0],
                           together[row])
