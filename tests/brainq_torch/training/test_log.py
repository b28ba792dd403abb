from brainq_torch.training.log import COLUMNS, plot_curves, read_log, write_log

ROWS = [
    dict.fromkeys(COLUMNS, 0.5) | {"stage": stage, "epoch": float(epoch)}
    for stage, epoch in [("head", 0), ("all", 0), ("all", 1)]
]


def test_log_round_trip(tmp_path):
    write_log(tmp_path / "log.csv", ROWS)
    assert read_log(tmp_path / "log.csv") == ROWS
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]


def test_curves_are_a_picture(tmp_path):
    plot_curves(ROWS, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
