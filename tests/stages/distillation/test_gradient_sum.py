"""Gradients of two real processes, summed in buckets while the backward pass runs: what one process would have accumulated."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from stages.distillation.gradient_sum import GradientSum
from tests.pipeline.train.trainings import ROOT

_RANK = """
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from stages.distillation.gradient_sum import GradientSum

folder, rank = Path(sys.argv[1]), int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=timedelta(seconds=120))


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(6))
        self.unused = nn.Parameter(torch.zeros(5))

    def forward(self, x, skipped=None):
        for number, layer in enumerate(self.layers):
            x = x if number == skipped else torch.tanh(layer(x))
        return x.square().sum()


network = Network()
sums = GradientSum(list(network.parameters()), bucket_bytes=600)  # two layers each
began = []
all_reduce = dist.all_reduce
first = network.layers[0].weight
dist.all_reduce = lambda *a, **k: (began.append(first.grad is None), all_reduce(*a, **k))[1]
steps = []
for step in range(4):
    network.zero_grad(set_to_none=True)
    torch.manual_seed(10 * step + rank)
    batches = [torch.randn(3, 8) for _ in range(2)]
    network(batches[0]).backward() if step == 2 else None  # a micro-batch before
    # In the last step one process does not come by a layer that both have used before.
    sums.backward(network(batches[1], skipped=3 if step == 3 and rank else None))
    steps.append({name: p.grad for name, p in network.named_parameters()})
torch.save({"steps": steps, "began": began}, folder / f"rank{rank}.pt")
"""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "rank.py").write_text(_RANK)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(folder / "rank.py"), str(folder)]
    for process in [subprocess.Popen([*command, rank], env=environment) for rank in ("0", "1")]:
        assert process.wait(timeout=200) == 0
    return [torch.load(folder / f"rank{rank}.pt") for rank in (0, 1)]


def _alone(step: int) -> dict[str, torch.Tensor | None]:
    """What one process accumulates of what both have seen."""
    torch.manual_seed(0)
    layers = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(6))
    for rank in (0, 1):
        torch.manual_seed(10 * step + rank)
        batches = [torch.randn(3, 8) for _ in range(2)]
        for number, x in enumerate(batches[0 if step == 2 else 1 :], 0 if step == 2 else 1):
            for index, layer in enumerate(layers):
                skipped = step == 3 and rank == 1 and index == 3 and number == 1
                x = x if skipped else torch.tanh(layer(x))
            x.square().sum().backward()
    return {f"layers.{name}": parameter.grad for name, parameter in layers.named_parameters()}


@pytest.mark.parametrize("step", range(4))
def test_both_have_the_sum_of_what_each_has_accumulated(ranks: list[dict[str, Any]], step: int) -> None:
    expected = _alone(step)
    for rank in ranks:
        found = rank["steps"][step]
        assert found.pop("unused") is None
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient)


def test_sums_begin_before_the_first_layers_gradient_is_there(ranks: list[dict[str, Any]]) -> None:
    """One after the first pass, in which nobody knows yet what is used; then three for each, two of them early. (In the third
    step that gradient is there from the micro-batch before.)"""
    early = [True, True, False]
    assert ranks[0]["began"] == [False, *early, False, False, False, *early]


def test_where_there_is_one_process_it_is_a_backward_pass() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    GradientSum([weight]).backward((weight * torch.arange(3)).sum())
    assert weight.grad is not None
    assert weight.grad.tolist() == [0, 1, 2]
