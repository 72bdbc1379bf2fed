"""Real traces, read from a folder that `--traces` or `MESH_TRACES` names; they are not part of the project.

The folder has the layout of the two publications:

- `azure-vm-requests/`: `flav_map.txt`, `v1.train.txt`, `v1.dev.txt`, `v1.test.txt`: Azure's VM requests of 2017
  (AzurePublicDataset V1, CC-BY-4.0) as processed by huaweicloud/trace_generation_rnn.
- `azure-llm-requests/`: `AzureLLMInferenceTrace_conv.csv`: an hour of a conversation service's requests
  (Azure/AzurePublicDataset, CC-BY-4.0).
- `openb/`: `openb_node_list_all_node.csv`, `openb_pod_list_default.csv`: Alibaba's GPU cluster of 2023
  (alibaba/clusterdata).
"""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]


def folder(argument: str | None) -> Path | None:
    """Where the traces are; None if nobody says."""
    named = argument or os.environ.get("MESH_TRACES")
    return Path(named) if named else None


@dataclass(frozen=True, slots=True)
class AzureVMs:
    """Requests in the order of their arrival; `flavour` indexes `sizes` (millicores, MiB), `batch` counts batches."""

    sizes: Integers
    flavour: Integers
    batch: Integers


def azure_vms(traces: Path, most: int | None = None) -> AzureVMs:
    """The requests, or the first so many of them."""
    files = traces / "azure-vm-requests"
    sizes: list[tuple[int, int]] = []
    codes: dict[str, int] = {}
    for line in (files / "flav_map.txt").read_text().split("\n"):
        if line:
            size, letter = line.split()
            cores, gigabytes = size.split(",")
            codes[letter] = len(sizes)
            sizes.append((round(1000 * float(cores)), round(1024 * float(gigabytes))))
    flavour: list[int] = []
    batch: list[int] = []
    number = 0
    for part in ("train", "dev", "test"):
        with (files / f"v1.{part}.txt").open() as lines:
            for line in lines:
                for letter in line.split(" ", 1)[1].strip().split(","):
                    if letter == "|":
                        number += 1
                    elif letter:
                        flavour.append(codes[letter])
                        batch.append(number)
                if most is not None and len(flavour) >= most:
                    return AzureVMs(np.array(sizes), np.array(flavour[:most]), np.array(batch[:most]))
    return AzureVMs(np.array(sizes), np.array(flavour), np.array(batch))


@dataclass(frozen=True, slots=True)
class Conversations:
    """Requests to a language model: when each came (seconds from the first), tokens in and out."""

    times: NDArray[np.float64]
    context: Integers
    generated: Integers


def conversations(traces: Path) -> Conversations:
    """The hour, in the order of arrival."""
    with (traces / "azure-llm-requests" / "AzureLLMInferenceTrace_conv.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    times = np.array([datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp() for row in rows])
    context, generated = (np.array([int(row[name]) for row in rows]) for name in ("ContextTokens", "GeneratedTokens"))
    return Conversations(times - times[0], context, generated)


@dataclass(frozen=True, slots=True)
class GPUCluster:
    """Pods and nodes of openb.

    `pods`: millicores, MiB, GPUs, and thousandths of each GPU that is asked for. `nodes`: millicores, MiB, GPUs.
    """

    pods: Integers
    nodes: Integers


def openb(traces: Path) -> GPUCluster:
    """Alibaba's cluster, pods in the order of their creation."""

    def columns(name: str, *wanted: str) -> Integers:
        with (traces / "openb" / name).open(newline="") as file:
            return np.array([[int(row[column]) for column in wanted] for row in csv.DictReader(file)])

    return GPUCluster(
        columns("openb_pod_list_default.csv", "cpu_milli", "memory_mib", "num_gpu", "gpu_milli"),
        columns("openb_node_list_all_node.csv", "cpu_milli", "memory_mib", "gpu"),
    )
