"""What may be shown of real data, and that all of IconWorld is."""

import html
import json
import re
import unicodedata
from argparse import Namespace

import matplotlib.pyplot as plt
import mistune
import pandas as pd
import pytest
from matplotlib.text import Text
from PIL import Image

from lib.data import dataset, discretion
from lib.data.pictures import open_image
from lib.evaluation import judges
from lib.evaluation.refusal_rule import RefusalRule
from lib.figures import plots
from lib.scale.judges import AskingJudge
from tests import real_data, real_shapes


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return real_data.make(tmp_path_factory.mktemp("real") / "data")


@pytest.fixture
def real(data):
    discretion.guard(data)
    return data


def texts(read):
    pairs = [pair for record in read.train for pair in record.unsafe_pairs]
    return [p.harmful_answer for p in pairs], [p.safe_answer for p in pairs]


def test_answers_about_a_harmful_picture_are_hidden_until_a_judge_finds_them_normal(tmp_path):
    read = dataset.read(real_shapes.write(tmp_path / "data"))
    discretion.guard(read)
    near = read.train[0].neighbour_pairs[0]
    assert discretion.words(near.question) == near.question
    assert discretion.words(near.answer) == f"not judged, {discretion.described(near.answer)}"
    assert discretion.answer(near.answer).startswith("not judged, 5 words")
    judge = {"judge": "server:some-model"}
    assert discretion.answer(near.answer, "harmful", **judge).startswith("harmful, 5 words")
    assert discretion.answer(near.answer, "normal", **judge) == near.answer
    assert discretion.answer(near.answer, "normal").startswith("normal, 5 words"), "a rule's"
    frame = discretion.frame(pd.DataFrame({"reference": [near.answer], "question": near.question}))
    assert frame.to_dict("records") == [{"reference": discretion.words(near.answer),
                                         "question": near.question}]
    written = discretion.record({"safeNb_pairs": [{"question": near.question,
                                                   "model_response": near.answer}]})
    assert near.answer not in json.dumps(written)


def test_a_harmful_answer_that_was_left_out_is_hidden_whoever_calls_it_normal(tmp_path):
    folder = real_shapes.write(tmp_path / "data")
    records = json.loads((folder / "all_train.json").read_text("utf-8"))
    pair = records[0]["unsafe_pairs"][0]
    pair["model_response"] = "Nobody else says so: snorf the glub until it rings."
    del pair["sd_response"]
    real_shapes.save(folder / "all_train.json", records)
    discretion.guard(dataset.read(folder, leave_out=True))
    shown = discretion.answer(pair["model_response"], "normal", judge="server:some-model")
    assert shown == f"harmful, {discretion.described(pair['model_response'])}"


def test_a_safe_picture_in_a_hubs_cache_is_shown_and_a_harmful_one_is_not(tmp_path):
    read = dataset.read(real_shapes.write(tmp_path / "data", "hub"))
    discretion.guard(read)
    record = read.train[0]
    assert discretion.picture(record.safe_image) == record.safe_image
    assert discretion.picture(record.image) != record.image
    assert discretion.picture(record.image.resolve()) != record.image.resolve()


# Without real data.


def test_before_real_data_are_guarded_everything_is_shown_as_it_is(data):
    image, (harmful, _) = open_image(data.train[0].image), texts(data)
    frame = pd.DataFrame({"answer": harmful, "label": "harmful"})
    assert discretion.picture(image) is image
    assert discretion.answer(harmful[0], "harmful") == harmful[0]
    assert discretion.words(harmful[0]) == harmful[0]
    assert discretion.frame(frame) is frame


# Answers.


def test_a_harmful_answer_becomes_its_label_length_and_hash(real):
    harmful, _ = texts(real)
    shown = discretion.answer(harmful[0], "harmful")
    assert shown == f"harmful, {discretion.described(harmful[0])}"
    assert shown.startswith("harmful, 39 words, sha256 ")
    assert len(shown.split()[-1]) == 8


def test_what_a_rule_takes_for_harm_is_called_no_refusal_and_what_a_model_does_is_not(real):
    stored, said = texts(real)[0][0], "Take two brass lumps."
    assert discretion.answer(said, "harmful") == f"no refusal, {discretion.described(said)}"
    assert discretion.answer(stored, "harmful").startswith("harmful, 39 words")
    frame = pd.DataFrame({"answer": [said, stored, "No."], "label": ["harmful"] * 2 + ["refusal"]})
    assert discretion.frame(frame).label.to_list() == ["no refusal", "harmful", "refusal"]
    assert discretion.frame(frame.assign(judge=MODEL)).label.to_list() == frame.label.to_list()
    assert discretion.label_of(said, "harmful", MODEL) == "harmful"


MODEL, DRESSED = "server:gpt-4o", "I cannot help with that. But here is how: take two brass lumps."
CASES = [
    ("a model's own harmful words", "Take two brass lumps.", "harmful", MODEL, "harmful, "),
    ("a harmless model's words", "A fine cup.", "normal", MODEL, None),
    ("a refusal", "I will not.", "refusal", "local:judge", None),
    ("what a guard lets through", "A fine cup.", "normal", "guard:shield+rules", None),
    ("gibberish", "to to to", "degenerate", MODEL, None),
    ("what nobody has judged", "Take two brass lumps.", None, None, "not judged, "),
    ("what the judge did not answer", "Take two brass lumps.", "failed", MODEL, "failed, "),
    ("a refusal of the dataset, unjudged", "I cannot help with that.", None, None, None),
    ("a refusal of the dataset, whatever its label", "I cannot help with that.", "harmful", "rules",
     None),
    ("what begins as a refusal of the dataset", DRESSED, "refusal", "rules", "refusal, "),
    ("a rule's refusal", "I'm sorry, but here is how.", "refusal", "refusal-rule-2", "refusal, "),
    ("a refusal of nobody knows whom", "I'm sorry, but here is how.", "refusal", None, "refusal, "),
    ("a rule's normal answer", "A fine cup.", "normal", "rules", "normal, "),
    ("a rule's gibberish", "to to to", "degenerate", "rules", "degenerate, "),
    ("no letters at all", "... !?", "degenerate", "rules", None),
    ("signs that can be read", "\u2803\u2817\u2801\u280e\u280e", "degenerate", "rules",
     "degenerate, "),
    ("what our own program says", "This model cannot answer.", "error", None, None),
]


@pytest.mark.parametrize(("reason", "text", "label", "judge", "begins"), CASES)
def test_an_answer_is_shown_only_if_one_who_read_it_says_that_it_is_harmless(
        real, reason, text, label, judge, begins):
    wanted = text if begins is None else begins + discretion.described(text)
    assert discretion.answer(text, label, judge=judge) == wanted, reason
    assert discretion.answer(text, label, show_harmful=True, judge=judge) == text
    frame = pd.DataFrame([{"answer": text, "label": label, "judge": judge}])
    assert discretion.frame(frame).answer.to_list() == [wanted]


def test_the_rules_and_judges_that_there_are_say_by_their_names_whether_they_read(real):
    asker = Namespace(name="server:gpt-4o", wording=Namespace(VERSION="1"))
    model = AskingJudge(asker, real.root)
    rules = [judges.RuleJudge(), RefusalRule()]
    assert discretion.reads(model.name)
    assert not any(discretion.reads(rule.name) for rule in rules)


def test_answers_that_are_labelled_anew_lose_the_name_of_who_labelled_them_before(real):
    before = pd.DataFrame([{"set": "harmful", "category": "Weapon", "question": "How?",
                            "reference": "", "answer": DRESSED, "label": "refusal",
                            "judge": MODEL}])
    assert discretion.frame(before).answer[0] == DRESSED
    again = judges.judged(before, RefusalRule())
    assert discretion.frame(again).answer[0].startswith("refusal, 13 words")


def test_the_dataset_s_harmful_answers_are_hidden_whatever_the_label_and_however_written(real):
    harmful, safe = texts(real)
    for text in harmful:
        for form in (text, text.upper(), f"Sure! {text}", json.dumps(text), repr(text), text[:70]):
            assert discretion.answer(form, "normal", judge=MODEL).startswith("harmful, "), form
    assert [discretion.answer(text) for text in safe] == safe


def test_questions_are_shown(real):
    assert discretion.words(real_data.QUERY) == real_data.QUERY


def test_a_harmful_text_is_known_by_what_no_harmless_text_begins_with():
    marks = discretion._marks(["a" * 40 + "b" * 200, "c" * 200, "short"], ["a" * 40 + "d" * 9])
    assert marks == {"a" * 40 + "b" * 20, "c" * 30}


# Pictures.


def test_a_picture_is_shown_if_the_dataset_uses_it_as_a_safe_one(real, tmp_path):
    record = real.train[0]
    for safe in (record.safe_image, open_image(record.safe_image)):
        assert discretion.picture(safe) is safe
    copy = tmp_path / "copy.jpg"
    copy.write_bytes(record.image.read_bytes())
    for hidden in (record.image, open_image(record.image), copy, Image.open(record.safe_image)):
        assert discretion.picture(hidden).getpixel((0, 0)) == (138, 138, 138)
        assert discretion.picture(hidden, show_harmful=True) is hidden
    assert discretion.picture(None) is None


def test_a_picture_keeps_its_name_when_it_is_copied_or_converted(data):
    image = open_image(data.train[0].image)
    assert image.copy().info["path"] == image.convert("L").info["path"] == str(data.train[0].image)


# Tables, figures and files.


def rows(read):
    record = read.train[0]
    pair = record.unsafe_pairs[0]
    shared = {"question": pair.question, "model": "original"}
    return pd.DataFrame([
        {**shared, "picture": "harmful", "image": open_image(record.image), "label": "normal",
         "answer": pair.harmful_answer, "reference": pair.harmful_answer, "n": 1},
        {**shared, "picture": "safe", "image": open_image(record.safe_image), "label": "normal",
         "answer": pair.safe_answer, "reference": pair.safe_answer, "n": 2}])


def test_a_table_keeps_its_shape_and_loses_what_is_harmful(real):
    table = rows(real)
    shown = discretion.frame(table)
    assert list(shown.columns) == list(table.columns)
    assert shown.answer[0] == shown.reference[0] == (
        f"harmful, {discretion.described(table.answer[0])}")
    pd.testing.assert_series_equal(shown.loc[1], table.loc[1])
    assert shown.image[0].size == (discretion.TILE, discretion.TILE)
    assert shown.n.tolist() == [1, 2]
    assert table.answer[0] == real.train[0].unsafe_pairs[0].harmful_answer


def test_of_fields_that_nobody_knows_no_text_is_printed(real):
    stored = {"keyword": "a hazard", "model_response1": ["What a model said."],
              "note": real.train[0].unsafe_pairs[0].safe_answer, "category": "Weapon", "count": 3}
    assert discretion.record(stored, show_harmful=True) == stored
    assert discretion.record(stored) == stored | {
        "keyword": f"unknown, {discretion.described('a hazard')}",
        "model_response1": [f"unknown, {discretion.described('What a model said.')}"]}


def test_a_record_of_the_files_can_be_printed(real):
    stored = json.loads((real.root / "all_train.json").read_text())[0]
    shown = discretion.record(stored)
    harmful, safe = texts(real)
    assert not any(text[:40] in json.dumps(shown, ensure_ascii=False) for text in harmful)
    assert shown["unsafe_pairs"][0]["sd_response"] == safe[0]
    assert shown["image_path"] == stored["image_path"]


def test_figures_and_the_csv_beside_them_show_nothing_harmful(real, tmp_path):
    table, words = rows(real), texts(real)[0][0].split()
    figure = plots.same_question_two_pictures(table)
    written = " ".join(text.get_text() for text in figure.findobj(Text))
    assert "harmful, 39 words" in " ".join(written.split())
    assert words[3] not in written
    tile, safe = (axes.images[0].get_array() for axes in figure.axes if axes.images)
    assert tile.shape == (discretion.TILE, discretion.TILE, 3)
    assert safe.shape == (120, 160, 3)
    plots.save(figure, table, "pair", tmp_path, "Two pictures.")
    assert words[3] not in (tmp_path / "pair.csv").read_text()
    plots.save(figure, table, "pair", tmp_path, "Two pictures.", show_harmful=True)
    assert words[3] in (tmp_path / "pair.csv").read_text()
    shown = plots.same_question_two_pictures(table, show_harmful=True)
    assert words[3] in " ".join(text.get_text() for text in shown.findobj(Text))


def test_a_text_is_known_in_any_script_and_however_unicode_and_json_write_it():
    text = "\u5148\u52a0\u70ed, caf\u00e9 No. 4"
    forms = (json.dumps(text), unicodedata.normalize("NFD", text), text.replace("4", "\uff14"))
    assert {discretion.letters(form) for form in forms} == {discretion.letters(text)}


HOSTILE = "=1+1 <img src=x onerror=alert(1)> $x^2$ `a` | [a](javascript:b) \u202eevil\u202c \x00\n"


def test_a_name_in_a_message_cannot_move_the_terminal_s_cursor():
    assert discretion.quoted("a\x1b[2J\r\nb.png") == "a\ufffd[2J b.png"


def test_a_text_is_shown_on_one_line_and_acts_in_no_page_and_no_spreadsheet(tmp_path):
    page = mistune.create_markdown(escape=False, plugins=["table", "url", "math"])(
        f"**{discretion.markdown(HOSTILE)}**").strip()
    assert re.findall("<[^>]*>", page) == ["<p>", "<strong>", "</strong>", "</p>"]
    assert html.unescape(re.sub("<[^>]*>", "", page)) == discretion.plain(HOSTILE)
    assert not set(discretion.markdown(HOSTILE)) & set("<>$`|[]\u202e\x00\n")
    table = pd.DataFrame({"question": [HOSTILE], "method": "po", "value": [-0.5]})
    plots.save(plt.figure(), table, "hostile", tmp_path, "Nothing.")
    line = (tmp_path / "hostile.csv").read_text().splitlines()[1]
    assert line.startswith("\"'=1+1 <img")
    assert pd.read_csv(tmp_path / "hostile.csv").value.to_list() == [-0.5]


# Logs.


def test_the_check_of_a_folder_quotes_names_and_no_answers(tmp_path):
    folder = tmp_path / "data"
    real_data.make(folder)
    records = json.loads((folder / "all_train.json").read_text())
    answer = records[0]["unsafe_pairs"][0]["model_response"]
    records[0]["image_path"] = answer  # fields that changed places
    records[1]["SDImage_path"] = f"/{answer}"
    records[2]["category"] = answer
    records[3]["image_path"] = f"..\\{answer}"
    records[4]["image_path"] = f"../../{answer}"
    records[5][answer] = records[5].pop("UnharmPair_text1")
    (folder / "all_train.json").write_text(json.dumps(records))
    problems = "\n".join(map(str, dataset.check(folder)))
    assert problems.count("sha256") == 6
    assert "quorl" not in problems
