"""Answers by vLLM, whose documented interface a stand-in has here (vLLM itself needs a GPU)."""

import sys
from pathlib import Path

import pytest
import torch

from lib.evaluation import evaluate
from lib.evaluation.world_rule import RuleJudge
from lib.model import generate
from lib.model.generate import Query
from lib.model.llava import add_lora, load
from lib.model.merged import save_merged
from lib.model.packing import Features
from lib.model.settings import Evaluation, Runtime
from lib.scale import vllm as vllm_engine
from lib.unlearning.settings import Unlearning

STAND_INS = Path(__file__).parent / "stand_ins"
SETTINGS = Evaluation(max_new_tokens=10, batch=16, samples=2)


@pytest.fixture
def vllm(monkeypatch):
    """The stand-in as the module vllm."""
    monkeypatch.syspath_prepend(STAND_INS)
    monkeypatch.delenv("VLLM_ENABLE_V1_MULTIPROCESSING", raising=False)
    monkeypatch.delitem(sys.modules, "vllm", raising=False)
    import vllm

    yield vllm
    sys.modules.pop("vllm", None)


@pytest.fixture
def adapted(llava):
    """A model with an adapter that changes its answers, and a projector that was trained."""
    torch.manual_seed(0)
    model = add_lora(llava[0], Unlearning(lora_rank=4))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                parameter += 0.05 * torch.randn_like(parameter)
    return model.eval(), llava[1]


@pytest.fixture
def queries(world):
    asked = []
    for number, record in enumerate(world.train[:3]):
        for name, (image, pairs) in record.sets().items():
            asked += [Query(None if name == "retain text" else image, pair.question, 7 * number + i)
                      for i, pair in enumerate(pairs[:2])]
    return asked


def test_a_merged_model_on_disk_gives_the_adapter_s_logits_under_llava_s_names(adapted, base_folder,
                                                                               tmp_path):
    model, processor = adapted
    ids = torch.tensor([[1, 5, 9, 12]])
    with torch.no_grad():
        expected = model(input_ids=ids).logits
    save_merged(model, processor, tmp_path / "merged")
    again, _ = load(tmp_path / "merged")
    original, _ = load(base_folder)
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=ids).logits, expected, atol=1e-4, rtol=1e-4)
    assert again.state_dict().keys() == original.state_dict().keys()
    there = {path.name for path in (tmp_path / "merged").iterdir()}
    assert {path.name for path in base_folder.iterdir()} == there
    projector = "model.multi_modal_projector.linear_1.weight"
    assert not torch.equal(again.state_dict()[projector], original.state_dict()[projector])


def test_greedy_answers_are_those_of_transformers_in_the_order_of_the_queries(vllm, adapted,
                                                                             queries, tmp_path):
    model, processor = adapted
    expected = generate.answer(model, processor, Features(model, processor), queries, SETTINGS)
    kept, told = {}, []
    with vllm_engine.answerer(model, processor, tmp_path) as say:
        assert say(queries, SETTINGS, report=told.append, keep=kept.update) == expected
        assert say([], SETTINGS) == []
    assert kept == dict(enumerate(expected))
    assert told == [len(queries)]
    assert len(set(expected)) > 3
    assert list(tmp_path.iterdir()) == []


def test_a_model_in_bfloat16_answers_in_float32_with_all_that_its_adapter_learned(
        vllm, tiny_real, tmp_path):
    model, processor = load(tiny_real.model, Runtime(dtype="bfloat16"))
    model = add_lora(model, Unlearning(lora_rank=4)).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with vllm_engine.answerer(model, processor, tmp_path) as say:
        assert len(say([Query(None, "What is a stew?")], SETTINGS)) == 1
    assert vllm.ENGINES[-1].settings["dtype"] == "float32"
    assert vllm.ENGINES[-1].model.dtype == torch.float32
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_samples_have_the_temperature_and_each_its_own_seed(vllm, llava, queries, tmp_path):
    with vllm_engine.answerer(*llava, tmp_path) as say:
        first, again = (say(queries, SETTINGS, sampled=True) for _ in range(2))
        turned = say(queries[::-1], SETTINGS, sampled=True)[::-1]
    assert first == again == turned
    asked = [sampling for _, sampling in vllm.ENGINES[-1].asked[0]]
    assert [sampling.seed for sampling in asked] == [query.key for query in queries]
    assert {(s.temperature, s.top_p, s.max_tokens) for s in asked} == {(1.0, 0.9, 10)}


def test_the_engine_is_told_to_reuse_prefixes_and_to_run_no_foreign_code(vllm, llava, tmp_path):
    with vllm_engine.answerer(*llava, tmp_path):
        pass
    assert vllm.ENGINES[-1].settings == {
        "dtype": "float32", "load_format": "safetensors", "seed": 0, "trust_remote_code": False,
        "enable_prefix_caching": True, "limit_mm_per_prompt": {"image": 1},
        "gpu_memory_utilization": vllm_engine.MEMORY, "multiprocessing": "0"}


def test_many_answers_are_kept_lot_by_lot(vllm, llava, queries, tmp_path, monkeypatch):
    monkeypatch.setattr(vllm_engine, "LOT", 5)
    lots = []
    with vllm_engine.answerer(*llava, tmp_path) as say:
        said = say(queries, SETTINGS, keep=lots.append)
    assert [len(lot) for lot in lots] == [5] * (len(queries) // 5) + [len(queries) % 5] * (
        len(queries) % 5 > 0)
    assert {i: text for lot in lots for i, text in lot.items()} == dict(enumerate(said))


def test_an_evaluation_by_vllm_has_the_rows_of_one_by_transformers(vllm, llava, world, tmp_path):
    asked = evaluate.only(evaluate.questions(world, 0), split="val", category="Weapon")
    rest = (asked, SETTINGS, RuleJudge(), world.root)
    expected = evaluate.evaluate(*llava, Features(*llava), *rest)
    with vllm_engine.answerer(*llava, tmp_path) as say:
        found = evaluate.evaluate(*llava, None, *rest, log=tmp_path / "a.jsonl", say=say)
    greedy = expected.decoding.eq("greedy")
    same = [name for name in expected if name not in ("answer", "label", "score", "exact")]
    assert found[same].equals(expected[same])
    assert found[greedy].equals(expected[greedy])


def test_without_vllm_the_message_says_how_to_get_it(llava, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with (pytest.raises(ModuleNotFoundError, match=r'pip install -e "\.\[vllm\]"'),
          vllm_engine.answerer(*llava, tmp_path)):
        pass
    assert list(tmp_path.iterdir()) == []
