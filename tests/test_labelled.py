"""`lib/evaluation/labelled.py`, with harmless texts."""

import json
from dataclasses import replace

import pandas as pd
import pytest

from lib.evaluation import labelled
from lib.evaluation.labelled import FIELDS
from lib.evaluation.verdicts import LABELS
from lib.running import chapters, engines, experiments, pipeline
from lib.running.options import hand_down, parse
from lib.running.profiles import LLAVA_7B, get

SECRET = "Join the twindle to the spoff."
ROW = {"label": "harmful", "set": "harmful", "category": "Weapon", "question": "How is it made?",
       "answer": SECRET}


def written(tmp_path, *rows, name="sample.jsonl"):
    path = tmp_path / name
    if path.suffix.lower() == ".csv":
        pd.DataFrame(rows).to_csv(path, index=False)
    else:
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def refused(path):
    with pytest.raises(ValueError, match="labelled sample") as error:
        labelled.read(path)
    assert SECRET not in str(error.value), "no text of the file is shown"
    assert str(path) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", ["sample.csv", "sample.jsonl", "SAMPLE.CSV"])
def test_a_file_is_read_as_it_was_written(tmp_path, name):
    odd = ROW | {"set": "safe", "label": "normal", "answer": 'Two,\n"lines"; \u2028 and more'}
    found = labelled.read(written(tmp_path, ROW, odd, ROW | {"answer": ""}, name=name))
    assert found["answer"].tolist() == [SECRET, odd["answer"], ""]
    assert found["expected"].tolist() == ["harmful", "normal", "harmful"]
    assert list(found["set"]) == ["harmful", "safe", "harmful"]
    assert (found["reference"] == "").all()


def test_a_spreadsheet_s_habits_are_understood(tmp_path):
    path = tmp_path / "sample.csv"
    path.write_bytes("\ufeffLabel;Set;Category;Question;Answer\r\n"
                     " Refusal ;SAFE;Sex;Why?;No, sorry.\r\n\r\n".encode())
    row, = labelled.read(path).to_dict("records")
    assert (row["expected"], row["set"], row["answer"]) == ("refusal", "safe", "No, sorry.")


def test_all_problems_are_said_at_once_by_line_and_field(tmp_path):
    said = refused(written(tmp_path, ROW | {"label": "unsafe"}, ROW, ROW | {"label": ""},
                           ROW | {"set": "retain", "question": " "}, ROW | {"answer": None},
                           {"label": SECRET}, ROW | {"label": ""}))
    for words in ("line 1, field 'label': is 'unsafe'; write harmful or refusal or",
                  "lines 3, 7, field 'label': is empty; write", "line 4, field 'set': is 'retain'",
                  "line 4, field 'question': is empty", "lines 5, 6, field 'answer': is missing",
                  "line 6, field 'label': is a text: "):
        assert words in said


def test_many_problems_of_one_kind_take_one_line(tmp_path):
    said = refused(written(tmp_path, *[ROW | {"label": ""}] * 400))
    assert said.count("\n") == 1
    assert "lines 1, 2, 3, 4, 5, 6, 7, 8 and 392 more" in said


@pytest.mark.parametrize("field", FIELDS)
def test_a_column_that_is_not_there_is_named(tmp_path, field):
    row = {name: value for name, value in ROW.items() if name != field}
    assert f"lines 2, 3, field '{field}': is missing" in refused(
        written(tmp_path, row, row, name="sample.csv"))


def test_a_line_that_is_no_row_is_named(tmp_path):
    path = tmp_path / "sample.jsonl"
    path.write_text(json.dumps(ROW) + "\n" + SECRET + "\n\n[1]\nnull\n" + "[" * 100_000)
    assert "lines 2, 4, 6: is no JSON object" in refused(path)
    path = tmp_path / "sample.csv"
    path.write_text(",".join(FIELDS) + '\nharmful,harmful,Sex,Why?,One, two\nnormal,safe,Sex,"Why')
    said = refused(path)
    assert "line 2: has more values than the header has names" in said
    assert "line 3: cannot be read as CSV" in said


@pytest.mark.parametrize("text", ["", "\n\n", ",".join(FIELDS) + "\n"])
def test_a_file_without_answers_says_so(tmp_path, text):
    path = tmp_path / "sample.csv"
    path.write_text(text)
    assert "there are no answers" in refused(path)


def test_what_is_no_such_file_is_said_in_one_sentence(tmp_path):
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "latin.csv").write_bytes("Ä".encode("latin-1"))
    for name, words in (("none.csv", "check what follows --labelled"), ("folder.csv", "cannot be"),
                        ("latin.csv", "is not UTF-8"), ("sheet.xlsx", "no .csv and no .jsonl")):
        assert words in refused(tmp_path / name)


def test_answers_to_be_labelled_are_drawn_without_the_judge_s_word(tmp_path):
    answers = pd.DataFrame([
        ROW | {"set": kind, "split": split, "decoding": decoding, "answer": f"{kind} {number}"}
        for kind in ("harmful", "safe", "retain") for split in ("train", "val")
        for decoding in ("greedy", "sampled") for number in range(9)])
    drawn = labelled.to_label(answers, 5)
    assert list(drawn.columns) == list(FIELDS)
    assert (drawn["label"] == "").all()
    assert drawn["set"].value_counts().to_dict() == {"harmful": 5, "safe": 5}
    assert drawn["answer"].is_unique, "of val, greedy, each once"
    assert len(labelled.to_label(answers, 100)) == 18
    filled = drawn.assign(label=[*LABELS, *LABELS, "normal", "normal"])
    filled.to_json(tmp_path / "sample.jsonl", orient="records", lines=True)
    assert labelled.read(tmp_path / "sample.jsonl")["answer"].tolist() == drawn["answer"].tolist()


def test_the_option_is_checked_at_once_and_reaches_the_kernels(tmp_path, monkeypatch):
    monkeypatch.setenv("SAFEERASER_CALLED_FROM", str(tmp_path))
    monkeypatch.delenv("SAFEERASER_LABELLED", raising=False)
    written(tmp_path, ROW)
    given = ["--profile", "llava-7b", "--list", "--labelled"]
    profile = parse([*given, "sample.jsonl"]).profile
    assert profile.labelled == str(tmp_path / "sample.jsonl")
    monkeypatch.setenv("SAFEERASER_LABELLED", "")
    hand_down(profile)
    assert get("llava-7b") == profile
    with pytest.raises(ValueError, match="cannot be read"):
        parse([*given, "other.jsonl"])
    with pytest.raises(ValueError, match=r"--labelled, .* are for llava-7b"):
        parse(["--labelled", "sample.jsonl"])


def test_a_chapter_is_executed_again_when_labels_change(tmp_path, monkeypatch):
    monkeypatch.setattr(experiments, "steps", lambda *_: [])
    notebook, engine = chapters.find()[-1], engines.local(1, [], "cpu")

    def mark(*rows):
        profile = replace(LLAVA_7B, labelled=str(written(tmp_path, *rows)))
        return pipeline.make_plan(profile, [notebook], 1, engine).mark(notebook)

    assert mark(ROW) == mark(ROW)
    assert mark(ROW) != mark(ROW | {"label": "normal"})
