import pytest
import yaml

from brainq_torch.data.limits import MOST, LimitError, check_limits
from brainq_torch.fit import make_parser, resolve


def numbers(tree, path=()):
    """The paths of all whole numbers in a configuration."""
    if isinstance(tree, dict | list):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from numbers(value, (*path, key))
    elif isinstance(tree, int) and not isinstance(tree, bool):
        yield path


def test_every_count_of_a_configuration_has_a_limit():
    """Whatever options there will be: an absurd one is refused by its name before it fills the memory."""
    parser = make_parser()
    words = ["--config=configs/robust_7_whole.yaml", "--data.root=.", "--qat={}", "--ema_decay=0.5"]
    settings = yaml.safe_load(resolve(parser, parser.parse_args(words)))
    paths = [path for path in numbers(settings) if path[0] != "trainer"]
    assert {("data", "batch_size"), ("stages", 0, "epochs"), ("qat", "calibration_images"), ("threads",)} <= set(paths)
    for *parents, key in paths:
        part = settings
        for parent in parents:
            part = part[parent]
        before, part[key] = part[key], 10**12
        with pytest.raises(LimitError, match=r"\.".join(map(str, (*parents, key))) + r" is 1000000000000; allowed"):
            check_limits(settings)
        part[key] = before
    check_limits(settings)


def test_a_limit_itself_is_allowed_and_what_is_lightnings_is_its_own():
    stages = [{"epochs": MOST, "rate": 1e38}]
    check_limits({"stages": stages, "seed": 2**32 - 1, "trainer": {"max_steps": 10**7}, "compile": True})
    with pytest.raises(LimitError, match=r"stages\.1\.epochs is 100001; allowed are at most 100000"):
        check_limits({"stages": [{"epochs": MOST}, {"epochs": MOST + 1}]})
