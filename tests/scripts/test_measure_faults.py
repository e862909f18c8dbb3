from scripts.measure_faults import PAGE, load, render
from tests.hub_tools.fault_table import ROWS


def test_the_page_shows_the_committed_results() -> None:
    results = load()

    assert PAGE.read_text(encoding="utf-8") == render(results)


def test_every_row_was_measured_with_every_client() -> None:
    clients = {"modelferry/huggingface", "modelferry/modelscope", "huggingface_hub", "modelscope"}

    found = load()["rows"]

    assert {row.id for row in ROWS} == set(found)
    assert all(set(results) == clients for results in found.values())


def test_ours_satisfies_every_row() -> None:
    bad = [
        f"{row}: {result}"
        for row, results in load()["rows"].items()
        for client, result in results.items()
        if client.startswith("modelferry/") and not result["holds"]
    ]

    assert bad == []
