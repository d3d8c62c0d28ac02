"""Monthly quotas counted by the store: after a restart too, in batches too, and while the database is away."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from deepseek_serve import ledger as ledger_module
from deepseek_serve.auth import ApiKey
from deepseek_serve.ledger import UsageLedger
from deepseek_serve.store.store import Store
from deepseek_serve.store.usage import Tokens
from tests.serve.conftest import chat_body, running_server
from tests.serve.test_batches import begin, jsonl, lines_of, sdk_of, wait

CHAT = "/v1/chat/completions"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.anyio
async def test_sums_of_the_store_and_what_came_since(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    await store.open()
    store.usage.add("a", "m", Tokens(10, 5, 3, 1))
    store.usage.add("b", "m", Tokens(99))
    ledger = UsageLedger(store.usage)
    assert await ledger.tokens_this_month("a") == 13
    ledger.add("a", 4)
    ledger.add("never asked for", 4)
    assert await ledger.tokens_this_month("a") == 17
    monkeypatch.setattr(ledger_module, "_month_start", lambda: int(time.time()) + 86_400)
    assert await ledger.tokens_this_month("a") == 0  # another month
    await store.stop()


@pytest.mark.anyio
async def test_without_its_database_nobody_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)  # not opened
    ledger = UsageLedger(store.usage)
    assert await ledger.tokens_this_month("a") == 0
    ledger.add("a", 4)
    assert await ledger.tokens_this_month("a") == 4
    await store.stop()


def test_quota_over_restarts_and_batches(tmp_path: Path) -> None:
    keys = (ApiKey.of("sk-small", name="small", monthly_tokens=150), ApiKey.of("sk-big", name="big"))
    for life in range(2):
        with running_server(api_keys=keys, data_dir=str(tmp_path), batch_concurrency=1) as server:
            with server.client(headers={"authorization": "Bearer sk-small"}) as http:
                if life:
                    refused = http.post(CHAT, json=chat_body())
                    assert refused.status_code == 402 and refused.json()["error"]["code"] == "insufficient_quota"
                    assert http.get("/v1/usage").json()["data"][-1]["results"][0]["requests"] >= 2
                    continue
                assert http.post(CHAT, json=chat_body()).status_code == 200
            with sdk_of(server, "sk-small") as sdk:
                batch = wait(sdk, begin(sdk, jsonl([chat_body()] * 10)).id)
                output, errors = lines_of(sdk, batch.output_file_id), lines_of(sdk, batch.error_file_id)
                assert batch.status == "completed" and 1 <= len(output) <= 2 and len(output) + len(errors) == 10
                assert {line["response"]["status_code"] for line in errors.values()} == {402}
            with server.client(headers={"authorization": "Bearer sk-big"}) as http:
                assert http.post(CHAT, json=chat_body()).status_code == 200
            server.wait_metric("deepseek_usage_rows_waiting", 0)
