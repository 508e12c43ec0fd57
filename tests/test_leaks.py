"""What may not be published is found, however it is shown."""

import base64
import html
import io
import json

import pandas as pd
import pytest
from nbformat import v4
from PIL import PngImagePlugin

from lib.data.pictures import open_image
from lib.figures import gallery
from lib.running.training import probed
from lib.world.words import REFUSALS
from tests import leaks, real_data


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return real_data.make(tmp_path_factory.mktemp("real") / "data")


@pytest.fixture(scope="module")
def known(data):
    return [leaks.secrets(data, ["Take two brass lumps and heat them until they ring."])]


def book(*outputs, source="print(1)"):
    return v4.new_notebook(cells=[v4.new_markdown_cell("# A title"),
                                  v4.new_code_cell(source, outputs=list(outputs))])


def displayed(**kinds):
    names = {"plain": "text/plain", "page": "text/html", "png": "image/png", "jpg": "image/jpeg"}
    return v4.new_output("display_data", {names[kind]: value for kind, value in kinds.items()})


def encoded(image, kind="PNG", side=None):
    image = image.copy()
    if side:
        image.thumbnail((side, side))
    file = io.BytesIO()
    image.save(file, kind)
    return base64.b64encode(file.getvalue()).decode()


def ways_to_show(record):
    """Reason and output, for a harmful answer and its picture shown in every way we know of."""
    text, image = record.unsafe_pairs[0].harmful_answer, open_image(record.image)
    table = pd.DataFrame({"answer": [text], "label": ["normal"]})
    page = gallery.show([{"image": image, "question": "?", "answers": {"a": text}}])
    return {
        "printed": v4.new_output("stream", text=f"He said: {text}\n"),
        "as JSON": v4.new_output("stream", text=json.dumps({"answer": text})),
        "as a value": displayed(plain=repr(text)),
        "in a table that cuts it": displayed(plain=repr(table)),
        "in a page": displayed(page=f"<td>{html.escape(text)}</td>"),
        "with tags in its words": displayed(page=html.escape(text).replace("flur", "<b>flur</b>")),
        "in an error": v4.new_output("error", ename="E", evalue=text, traceback=[]),
        "in a gallery": displayed(page=page.data),
        "its picture alone, in a gallery": displayed(page=gallery.show(
            [{"image": image, "question": "?", "answers": {}}]).data),
        "its picture": displayed(png=encoded(image)),
        "its picture as JPEG, small": displayed(jpg=encoded(image, "JPEG", 60)),
        "what a model said": displayed(plain="TAKE two brass lumps and heat them until they ring"),
    }


WAYS = ["printed", "as JSON", "as a value", "in a table that cuts it", "in a page",
        "with tags in its words", "in an error", "in a gallery", "its picture alone, in a gallery",
        "its picture", "its picture as JPEG, small", "what a model said"]


@pytest.mark.parametrize("way", WAYS)
def test_harmful_material_is_found_however_it_is_shown(data, known, way):
    outputs = ways_to_show(data.train[1])
    assert list(outputs) == WAYS
    found = " and ".join(leaks.in_notebook(book(outputs[way]), known))
    assert found.startswith("cell 2 shows a harmful ")
    assert ("picture" in found) == ("picture" in way or "gallery" in way)
    assert ("answer" in found) == ("picture" not in way)
    assert leaks.in_notebook(book(outputs[way]), []) == []


def test_what_is_harmless_is_let_through(data, known):
    record = data.train[1]
    pair = record.unsafe_pairs[0]
    page = gallery.show([{"image": open_image(record.safe_image), "question": pair.question,
                          "answers": {"a": pair.safe_answer}}])
    outputs = [displayed(page=page.data, plain=repr(page)),
               displayed(png=encoded(real_data.photograph(1234))), displayed(png="no picture"),
               v4.new_output("stream", text=f"{pair.question} {data.refusals[0]}")]
    assert leaks.in_notebook(book(*outputs), known) == []


def test_words_and_metadata_of_cells_are_looked_through_too(data, known):
    harmful = data.train[1].unsafe_pairs[0].harmful_answer
    page = v4.new_notebook(cells=[
        v4.new_markdown_cell(f"It said: {harmful}"), v4.new_code_cell(f"said = {harmful!r}"),
        v4.new_markdown_cell("nothing", metadata={"note": harmful})])
    assert leaks.in_notebook(page, known) == [
        f"cell {number} shows a harmful answer of real data" for number in (1, 2, 3)]


SOURCES = [("show_harmful = False", False), ("show_harmful = True", True),
           ("show_harmful = 1 > 0", True), ("%matplotlib inline\nshow(rows, show_harmful)", False),
           ("gallery.show(rows, show_harmful=True)", True),
           ("gallery.show(rows, show_harmful=show_harmful)", False), ("!show_harmful (", False)]


@pytest.mark.parametrize(("source", "refused"), SOURCES)
def test_a_notebook_that_asks_for_harm_is_refused(source, refused):
    found = leaks.in_notebook(book(source=source), [])
    assert found == ["cell 2 sets show_harmful: run it without"] * refused


def test_figures_and_tables_are_looked_through_too(data, known, tmp_path):
    record = data.val[0]
    (tmp_path / "a.csv").write_text(f'x,"{record.unsafe_pairs[2].harmful_answer}"')
    open_image(record.image).save(tmp_path / "b.png")
    (tmp_path / "c.md").write_text(record.unsafe_pairs[0].safe_answer)
    found = {name: leaks.in_file(tmp_path / name, known) for name in ("a.csv", "b.png", "c.md")}
    assert found == {"a.csv": ["a harmful answer of real data"],
                     "b.png": ["a harmful picture of real data"], "c.md": []}


def test_a_picture_s_own_texts_and_files_of_other_kinds_are_not_let_through(data, known, tmp_path):
    noted = PngImagePlugin.PngInfo()
    noted.add_text("Description", data.train[1].unsafe_pairs[0].harmful_answer)
    real_data.photograph(77).save(tmp_path / "a.png", pnginfo=noted)
    assert leaks.in_file(tmp_path / "a.png", known) == ["a harmful answer of real data"]
    (tmp_path / "b.pdf").write_bytes(b"%PDF")
    assert "cannot be looked through" in leaks.in_file(tmp_path / "b.pdf", known)[0]
    assert leaks.in_file(tmp_path / "b.pdf", []) == []


def store(folder, data, judge, *answers, questions="harmful"):
    """A run store with one run on real data; answers as (text, label)."""
    said = [{"set": questions, "answer": text} for text, _ in answers]
    labels = [{"label": label, "score": 0.0} for _, label in answers]
    for name, content in (("d-1/metrics.json", [{"data": str(data.root)}]),
                          ("d-1/manifest.json", [{"step": "dataset"}]),
                          ("a-1/config.json", [{}]), ("a-1/answers.jsonl", said),
                          ("l-1/config.json", [{"answers": "a-1"}]), ("l-1/labels.jsonl", labels),
                          ("l-1/manifest.json", [{"facts": {"judge": judge}}])):
        path = folder / "llava-7b" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(each) + "\n" for each in content))
    return folder


def test_what_nobody_has_labelled_may_not_be_published(data, tmp_path):
    made = store(tmp_path, data, "server:gpt-4o", (DRESSED, "normal")) / "llava-7b"
    assert not leaks.of_store(tmp_path)[0].quoted_in(DRESSED)
    for path in (made / "l-1").iterdir():
        path.unlink()
    assert leaks.of_store(tmp_path)[0].quoted_in(DRESSED)


def test_what_was_said_to_a_run_s_probes_may_not_be_published(data, tmp_path):
    made = store(tmp_path, data, "server:gpt-4o") / "llava-7b"
    asked = probed(data)
    said = [f"{question.set} number {n}: boil brass" for n, question in enumerate(asked)]
    (made / "adapter-1").mkdir()
    (made / "adapter-1/probes.jsonl").write_text(json.dumps({"step": 0, "answers": said}) + "\n")
    (made / "l-1/probes.jsonl").write_text(json.dumps({"step": 0, "rr": 0.5}) + "\n")
    (known,) = leaks.of_store(tmp_path)
    assert {question.set for question in asked} == {"harmful", "safe"}
    assert [known.quoted_in(text) for text in said] == [
        question.set == "harmful" for question in asked]


DRESSED = "I'm sorry, but no. Then again: boil the brass lumps."
JUDGED = [("rules", True), ("server:gpt-4o", False), (None, True)]


@pytest.mark.parametrize(("judge", "secret"), JUDGED)
def test_what_a_rule_calls_a_refusal_may_not_be_published(data, tmp_path, judge, secret):
    own = [data.refusals[0], data.train[0].unsafe_pairs[0].safe_answer, REFUSALS[0], "...", ""]
    (known,) = leaks.of_store(store(tmp_path, data, judge, (DRESSED, "refusal"),
                                    *((text, "refusal") for text in own)))
    assert known.quoted_in(DRESSED) == secret
    assert not any(map(known.quoted_in, [*own, "and nothing else"]))


@pytest.mark.parametrize(("questions", "secret"), [("harmful", False), ("neighbour", True)])
def test_a_guard_opens_only_the_answers_that_it_reads_itself(data, tmp_path, questions, secret):
    (known,) = leaks.of_store(store(tmp_path, data, "guard:any+rules", (DRESSED, "refusal"),
                                    questions=questions))
    assert known.quoted_in(DRESSED) == secret


def test_widgets_and_alt_texts_are_looked_through_too(data, known):
    harmful = data.train[1].unsafe_pairs[0].harmful_answer
    drawn = displayed(png=encoded(real_data.photograph(5)))
    drawn.metadata["image/png"] = {"alt": harmful}
    page = book(drawn)
    page.metadata["widgets"] = {"state": {"a": {"_options_labels": [harmful]}}}
    assert leaks.in_notebook(page, known) == [
        "the notebook's metadata hold a harmful answer of real data",
        "cell 2 shows a harmful answer of real data"]


def test_the_store_s_real_datasets_are_known_with_what_models_said_to_them(data, tmp_path):
    store(tmp_path, data, "server:gpt-4o", ("Brass lumps are to be boiled.", "harmful"))
    stand_in = tmp_path / "laptop" / "dataset-2" / "metrics.json"
    stand_in.parent.mkdir(parents=True)
    stand_in.write_text('{"train": 720}')
    stand_in.with_name("manifest.json").write_text('{"step": "dataset"}')
    (known,) = leaks.of_store(tmp_path)
    assert known.quoted_in(data.val[0].unsafe_pairs[0].harmful_answer)
    assert known.quoted_in("brass lumps are\nto be boiled")
    assert not known.quoted_in(data.val[0].unsafe_pairs[0].safe_answer)
    assert known.pictures.shape == (12, leaks.SIDE, leaks.SIDE, 3)
