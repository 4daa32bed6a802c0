"""Checks of the published client against a server. Run by run-client-suite.ts; prints one JSON line a check.

Environment: BASE_URL; API_KEY (with credit); POOR_API_KEY (a balance that pays for nothing); SLOW_API_KEY (its rate
limit is 1/s, burst 1); ACTIONS_MIN and ACTIONS_MAX (what the active model's actions mean something in). Where there is
one: TOPUP_BASE_URL and TOPUP_API_KEY (a server that takes cards, whose payment pages pay when they are opened).
"""

import asyncio
import io
import json
import os
import tempfile
import time
import traceback
from pathlib import Path

import dream
import httpx
import numpy as np
from dream.io import frames_from_dir
from PIL import Image

BASE_URL = os.environ["BASE_URL"]
API_KEY = os.environ["API_KEY"]
ACTIONS_MIN = float(os.environ["ACTIONS_MIN"])
ACTIONS_MAX = float(os.environ["ACTIONS_MAX"])
ONE_ATTEMPT = dream.RetryPolicy(max_attempts=1)

client = dream.Client(api_key=API_KEY, base_url=BASE_URL)


def active_model(using=client):
    return next(handle for handle in using.models.list() if handle.active)


handle = active_model()
H, W = handle.resolution
DIM = handle.action_dim
T = 4 * handle.chunk_size
FRAMES = T + 1
PRICE_MILS = round(handle.spec.price_per_frame_usd * 10_000)
CHARGE_MILS = FRAMES * PRICE_MILS


def start_frame():
    """A gradient, so that a swap of height and width or of channels would show."""
    rows = np.linspace(0, 255, H, dtype=np.uint8)[:, None]
    columns = np.linspace(0, 255, W, dtype=np.uint8)[None, :]
    return np.stack([rows + 0 * columns, columns + 0 * rows, np.full((H, W), 40, np.uint8)], axis=-1).astype(np.uint8)


def some_actions(seed=0):
    return np.random.default_rng(seed).uniform(ACTIONS_MIN, ACTIONS_MAX, size=(T, DIM)).astype(np.float32)


def npy_bytes(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def png_bytes(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    return buffer.getvalue()


def raises(kind, call):
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"expected {kind.__name__}, but nothing was raised")


def balance():
    return client.billing.balance().balance_mils


def lists_models():
    handles = client.models.list()
    assert len([one for one in handles if one.active]) == 1
    assert len({one.slug for one in handles}) == len(handles)


def gets_a_model_with_its_spec():
    model = client.models.get(handle.slug)
    spec = model.spec
    assert spec.name and spec.provider and spec.category and spec.summary and spec.license, spec
    assert spec.upstream_provider.name, spec
    assert model.action_dim > 0 and model.chunk_size > 0 and H > 0 and W > 0
    assert spec.default_num_steps >= 1
    assert spec.arch.output_kind == "video" and spec.arch.runner
    assert spec.price_per_frame_usd == 0.0005


def names_an_unknown_model():
    error = raises(dream.ModelNotFoundError, lambda: client.models.get("no-such-model"))
    assert error.status_code == 404 and error.request_id
    assert handle.slug in str(error), "says which models there are"


def predicts_with_an_envelope():
    before = balance()
    rollout = handle.predict(start_frame=start_frame(), actions=some_actions(1), seed=5)
    assert rollout.id.startswith("rollout_") and len(rollout.id) == len("rollout_") + 32
    assert rollout.model == handle.slug
    assert rollout.frames == FRAMES
    assert rollout.resolution == (H, W)
    assert rollout.seed == 5
    assert rollout.engine_wall_ms > 0
    assert rollout.created > 1_700_000_000 and rollout.video_url_expires_at > rollout.created
    assert abs(rollout.cost_usd - CHARGE_MILS / 10_000) < 1e-9
    assert rollout.psnr_db is None and rollout.ssim is None and rollout.lpips is None
    assert before - balance() == CHARGE_MILS
    with tempfile.TemporaryDirectory() as folder:
        saved = rollout.save(Path(folder) / "rollout.mp4")
        assert saved.stat().st_size > 500
    video = rollout.video()
    assert video.shape == (FRAMES, H, W, 3), video.shape
    assert video.dtype == np.uint8


def predicts_by_the_older_call():
    before = balance()
    answer = client.predict(frame_bytes=png_bytes(start_frame()), actions_bytes=npy_bytes(some_actions(2)), seed=3)
    assert answer.frames is not None and answer.frames.shape == (FRAMES, H, W, 3)
    assert answer.request_id and answer.customer_id.startswith("cus_")
    assert answer.engine_wall_ms > 0
    assert abs(answer.estimated_charge_usd - CHARGE_MILS / 10_000) < 1e-9
    assert before - balance() == CHARGE_MILS


def keeps_every_digit_of_a_seed():
    seed = 2**63 + 3
    rollout = handle.predict(start_frame=start_frame(), actions=some_actions(1), seed=seed, num_steps=1)
    assert rollout.seed == seed, rollout.seed


def predicts_a_batch_in_order():
    before = balance()
    levels = np.linspace(ACTIONS_MIN, ACTIONS_MAX, 4, dtype=np.float32)
    candidates = np.stack([np.full((T, DIM), level) for level in levels])[[2, 0, 3, 1]]
    batch = handle.predict_batch(start_frame=start_frame(), actions=candidates, seed=1)
    assert batch.batch_size == 4 and len(batch) == 4
    assert abs(batch.cost_usd - 4 * CHARGE_MILS / 10_000) < 1e-9
    assert before - balance() == 4 * CHARGE_MILS
    singles = [handle.predict(start_frame=start_frame(), actions=one, seed=1) for one in candidates]
    for together, alone in zip(batch, singles):
        video = together.video()
        assert video.shape == (FRAMES, H, W, 3), video.shape
        distance = [np.abs(video.astype(int) - other.video().astype(int)).mean() for other in singles]
        assert int(np.argmin(distance)) == singles.index(alone), distance


def predicts_many_from_a_folder():
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "in"
        source.mkdir()
        for row in range(3):
            (source / f"row{row}.png").write_bytes(png_bytes(start_frame()))
            (source / f"row{row}.npy").write_bytes(npy_bytes(some_actions(20 + row)))
        estimate = client.estimate_cost(frames_from_dir(source), spec=handle.slug)
        assert estimate.total_frames == 3 * FRAMES
        assert abs(estimate.total_usd - 3 * CHARGE_MILS / 10_000) < 1e-9
        written = {}

        class Kept(dream.io.RolloutSink):
            def write(self, record):
                written[record.row_id] = record

            def finalize(self):
                return "kept"

        before = balance()
        result = client.predict_many(frames_from_dir(source), Kept(), spec=handle.slug, concurrency=2, progress=False)
        assert (result.ok, result.failed) == (3, 0), result
        assert sorted(written) == ["row0", "row1", "row2"]
        assert all(len(record.mp4_bytes) > 500 for record in written.values())
        assert before - balance() == 3 * CHARGE_MILS


def repeats_an_idempotency_key_without_charge():
    key = f"suite-{os.getpid()}-{np.random.default_rng().integers(1 << 62)}"
    first = handle.predict(start_frame=start_frame(), actions=some_actions(4), idempotency_key=key)
    before = balance()
    again = handle.predict(start_frame=start_frame(), actions=some_actions(4), idempotency_key=key)
    assert again.id == first.id and balance() == before
    error = raises(
        dream.ValidationError,
        lambda: handle.predict(start_frame=start_frame(), actions=some_actions(5), idempotency_key=key),
    )
    assert error.status_code == 422 and balance() == before


def shows_balance_and_transactions():
    shown = client.billing.balance()
    assert shown.customer_id.startswith("cus_")
    assert shown.balance_usd == shown.balance_mils / 10_000
    rows = client.billing.transactions(limit=5)
    assert 1 <= len(rows) <= 5
    newest = rows[0]
    assert newest.kind == "debit" and newest.amount_mils == -CHARGE_MILS, newest
    assert newest.balance_after_mils == shown.balance_mils
    assert f"{handle.slug} · {FRAMES} frames" in newest.detail, newest.detail
    assert newest.ts > 1_700_000_000 and newest.id
    # Newest first: each balance is the one before it and its own amount.
    for newer, older in zip(rows, rows[1:]):
        assert newer.balance_after_mils == older.balance_after_mils + newer.amount_mils, (newer, older)
    assert len(client.billing.transactions(limit=5000)) <= 200


def says_how_to_add_credits():
    single = dream.Client(api_key=API_KEY, base_url=BASE_URL, retry_policy=ONE_ATTEMPT)
    error = raises(dream.ServerError, lambda: single.billing.topup(amount_usd=25))
    assert error.status_code == 503 and "credits grant" in str(error)


def tops_up_by_card():
    if "TOPUP_BASE_URL" not in os.environ:
        return  # a server without Stripe; says_how_to_add_credits is about those
    paying = dream.Client(api_key=os.environ["TOPUP_API_KEY"], base_url=os.environ["TOPUP_BASE_URL"])
    before = paying.billing.balance().balance_mils
    session = paying.billing.topup(amount_usd=25.50)
    assert session.session_id.startswith("cs_test_") and session.url.startswith("http"), session
    assert session.amount_cents == 2550 and session.amount_usd == 25.5, session
    assert session.customer_id == paying.billing.balance().customer_id
    assert paying.billing.balance().balance_mils == before, "asking for a page charges and credits nothing"
    assert httpx.get(session.url, timeout=10).status_code == 200
    for _ in range(100):
        if paying.billing.balance().balance_mils != before:
            break
        time.sleep(0.1)
    assert paying.billing.balance().balance_mils == before + 255_000
    newest = paying.billing.transactions(limit=1)[0]
    assert newest.kind == "credit" and newest.amount_cents == 2550 and newest.id.startswith("evt_"), newest
    assert newest.balance_after_mils == before + 255_000, newest


def refuses_without_credits():
    poor = dream.Client(api_key=os.environ["POOR_API_KEY"], base_url=BASE_URL)
    before = poor.billing.balance().balance_mils
    for call in (
        lambda: active_model(poor).predict(start_frame=start_frame(), actions=some_actions()),
        lambda: active_model(poor).predict_batch(start_frame=start_frame(), actions=np.stack([some_actions()] * 2)),
        lambda: poor.predict(frame_bytes=png_bytes(start_frame()), actions_bytes=npy_bytes(some_actions())),
    ):
        error = raises(dream.InsufficientCreditsError, call)
        assert error.balance_mils == before and error.requested_mils > before, vars(error)
        assert error.request_id
    assert poor.billing.balance().balance_mils == before


def refuses_keys_that_are_wrong():
    for wrong in (None, "hello", API_KEY[:-1], API_KEY[:-1] + ("a" if API_KEY[-1] != "a" else "b")):
        # The constructor would read a key from the environment.
        stranger = dream.Client(api_key=wrong, base_url=BASE_URL)
        error = raises(dream.AuthError, stranger.billing.balance)
        assert error.status_code == 401 and error.request_id


def says_what_is_wrong_with_inputs():
    frame, actions = png_bytes(start_frame()), npy_bytes(some_actions())
    before = balance()
    for wrong_frame, wrong_actions, said in (
        (frame, npy_bytes(np.zeros((T, DIM + 1), np.float32)), f"(T, {DIM})"),
        (frame, npy_bytes(np.zeros((T - 1, DIM), np.float32)), f"multiple of {handle.chunk_size}"),
        (frame, npy_bytes(np.full((T, DIM), np.nan, np.float32)), "NaN"),
        (frame, b"no array", ".npy"),
        (b"no image", actions, "PNG or JPEG"),
    ):
        error = raises(
            dream.ValidationError, lambda: client.predict(frame_bytes=wrong_frame, actions_bytes=wrong_actions)
        )
        assert error.status_code == 422 and said in str(error), str(error)
    assert balance() == before


def raises_on_the_rate_limit():
    slow = dream.Client(api_key=os.environ["SLOW_API_KEY"], base_url=BASE_URL, retry_policy=ONE_ATTEMPT)
    slow.billing.balance()
    error = raises(dream.RateLimitError, slow.billing.balance)
    assert error.status_code == 429 and error.retry_after is not None and error.retry_after >= 1
    patient = dream.Client(api_key=os.environ["SLOW_API_KEY"], base_url=BASE_URL)
    patient.billing.balance()  # its retries wait as long as it is told


def reads_status_health_and_specs():
    status = client.status()
    assert status["model"] == handle.slug and status["uptime_s"] >= 0
    assert status["engine_wall_ms"]["count"] >= 1 and status["engine_wall_ms"]["p50"] > 0
    assert client.healthz()["status"] == "ok"
    assert any(entry["slug"] == handle.slug for entry in client.specs()["specs"])


def serves_every_model_below_its_own_base_url():
    for other in client.models.list():
        scoped = dream.Client(api_key=API_KEY, base_url=f"{BASE_URL}/m/{other.slug}")
        model = scoped.models.get(other.slug)
        assert model.active and active_model(scoped).slug == other.slug
        assert scoped.billing.balance().balance_mils == balance()
        actions = np.zeros((model.chunk_size, model.action_dim), np.float32)
        rollout = model.predict(start_frame=start_frame(), actions=actions)
        assert rollout.model == other.slug and rollout.resolution == model.resolution
        assert rollout.video().shape == (model.chunk_size + 1, *model.resolution, 3)


def links_work_without_a_key():
    rollout = handle.predict(start_frame=start_frame(), actions=some_actions(6))
    assert httpx.get(rollout.video_url, timeout=5).content == rollout.mp4_bytes()
    tampered = rollout.video_url.replace("candidate=0", "candidate=1")
    assert httpx.get(tampered, timeout=5).status_code == 403


def works_asynchronously():
    async def run():
        async with dream.AsyncClient(api_key=API_KEY, base_url=BASE_URL) as other:
            models = await other.models.list()
            model = next(one for one in models if one.active)
            rollouts = await asyncio.gather(
                *(model.predict(start_frame=start_frame(), actions=some_actions(30 + i)) for i in range(3))
            )
            assert all(rollout.frames == FRAMES for rollout in rollouts)
            batch = await model.predict_batch(
                start_frame=start_frame(), actions=np.stack([some_actions(40), some_actions(41)])
            )
            assert len(batch) == 2 and batch[0].video().shape == (FRAMES, H, W, 3)
            answer = await other.predict(
                frame_bytes=png_bytes(start_frame()), actions_bytes=npy_bytes(some_actions(50))
            )
            assert answer.frames.shape == (FRAMES, H, W, 3)
            assert (await other.billing.balance()).balance_mils >= 0
            assert len(await other.billing.transactions(limit=3)) == 3

    asyncio.run(run())


CHECKS = [
    lists_models,
    gets_a_model_with_its_spec,
    names_an_unknown_model,
    predicts_with_an_envelope,
    predicts_by_the_older_call,
    keeps_every_digit_of_a_seed,
    predicts_a_batch_in_order,
    predicts_many_from_a_folder,
    repeats_an_idempotency_key_without_charge,
    shows_balance_and_transactions,
    says_how_to_add_credits,
    tops_up_by_card,
    refuses_without_credits,
    refuses_keys_that_are_wrong,
    says_what_is_wrong_with_inputs,
    raises_on_the_rate_limit,
    reads_status_health_and_specs,
    serves_every_model_below_its_own_base_url,
    links_work_without_a_key,
    works_asynchronously,
]

for check in CHECKS:
    try:
        check()
        print(json.dumps({"name": check.__name__, "error": None}), flush=True)
    except Exception:
        print(json.dumps({"name": check.__name__, "error": traceback.format_exc()}), flush=True)
