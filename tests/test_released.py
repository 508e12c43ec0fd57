from lib.model import released


def test_the_stages_are_those_of_the_small_model_in_its_order():
    assert released.stages()["stage"].to_list() == [
        "contrastive", "language", "alignment", "instruction"]
