from brainq_torch.console import name_first


def test_the_first_are_named_and_the_others_counted():
    assert name_first(["a", "b"]) == name_first(["a", "b"], most=2) == "a, b"
    assert name_first(["a", "b", "c", "d"], most=2) == "a, b and 2 more"
