from __future__ import annotations

from meddinov3_stroke.heads.training import BestEpoch


def offered(best: BestEpoch, *epochs: tuple[float | None, float]) -> list[bool]:
    return [best.offer(number, auroc, loss) for number, (auroc, loss) in enumerate(epochs, start=1)]


def test_best_epoch_has_the_highest_auroc_whatever_its_loss() -> None:
    best = BestEpoch("val_macro_auroc")
    assert offered(best, (0.7, 0.1), (0.8, 0.9), (0.75, 0.05)) == [True, True, False]
    assert (best.epoch, best.metric_name) == (2, "val_macro_auroc")


def test_among_equal_aurocs_the_lowest_loss_wins() -> None:
    best = BestEpoch("val_macro_auroc")
    assert offered(best, (1.0, 0.5), (1.0, 0.4), (1.0, 0.4), (1.0, 0.6)) == [True, True, False, False]


def test_without_any_auroc_the_lowest_loss_wins() -> None:
    best = BestEpoch("val_loss")
    assert offered(best, (None, 0.5), (None, 0.4), (None, 0.6)) == [True, True, False]
    assert (best.epoch, best.metric_name) == (2, "val_loss")


def test_patience_counts_epochs_without_a_better_auroc_even_if_the_loss_falls() -> None:
    best = BestEpoch("val_macro_auroc")
    offered(best, (0.9, 0.5), (0.9, 0.4), (0.8, 0.3))
    assert best.is_stale(2)
    assert not best.is_stale(3)


def test_patience_zero_never_stops() -> None:
    best = BestEpoch("val_macro_auroc")
    offered(best, *[(0.5, 0.5)] * 50)
    assert not best.is_stale(0)


def test_without_validation_the_last_epoch_is_the_best_and_patience_never_stops() -> None:
    best = BestEpoch("last_epoch")
    assert [best.offer(epoch, None, None) for epoch in (1, 2, 3)] == [True, True, True]
    assert best.epoch == 3
    assert not best.is_stale(1)
