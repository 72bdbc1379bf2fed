from mesh.metrics import Family, Sample, merge, render


def test_workers_add_up_and_render_as_prometheus_text() -> None:
    def worker(count: float) -> list[Family]:
        return [
            Family("mesh_dns_queries", "Queries.", "counter", [Sample(count, {"type": "A"})]),
            Family(
                "mesh_dns_seconds", "Time.", "histogram",
                [Sample(count, {"le": "+Inf"}, "_bucket"), Sample(count, {}, "_count"), Sample(0.5, {}, "_sum")],
            ),
        ]  # fmt: skip

    merged = merge([*worker(2), *worker(3)])
    assert [sample.value for sample in merged[0].samples] == [5]
    text = render(merged).decode()
    assert 'mesh_dns_queries_total{type="A"} 5.0' in text
    assert 'mesh_dns_seconds_bucket{le="+Inf"} 5.0' in text
    assert "# TYPE mesh_dns_seconds histogram" in text
