"""Checks of the published client against a server. Run by run-client-suite.ts; prints one JSON line a check.

Environment: BASE_URL; API_KEY (with credit); POOR_API_KEY (a balance that pays for nothing); SLOW_API_KEY (its rate
limit is 1/s, burst 1); ACTIONS_MIN and ACTIONS_MAX (what the active model's actions mean something in). Where there is
one: TOPUP_BASE_URL and TOPUP_API_KEY (a server that takes cards, whose payment pages pay when they are opened).
S3_ENDPOINT and S3_BUCKET (a bucket of the suite's own), with what boto3 looks for (AWS_ACCESS_KEY_ID and so on).
"""

import asyncio
import io
import json
import os
import tempfile
import time
import traceback
from pathlib import Path

import boto3
import dream
import httpx
import mediapy
import numpy as np
import pyarrow.parquet as parquet
from dream.io import DirRolloutSink, RolloutSink, S3RolloutSink, frames_from_dir, frames_from_s3
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


def scores_a_rollout_for_the_same_price():
    before = balance()
    request = dict(start_frame=start_frame(), actions=some_actions(1), seed=6)
    scored = handle.predict(**request, score=True)
    assert before - balance() == CHARGE_MILS
    assert abs(scored.cost_usd - CHARGE_MILS / 10_000) < 1e-9
    assert 15 < scored.psnr_db <= 100 and 0.5 < scored.ssim <= 1 and 0 <= scored.lpips < 0.5, scored
    plain = handle.predict(**request)
    assert plain.id != scored.id and plain.psnr_db is None and plain.ssim is None and plain.lpips is None
    assert np.array_equal(plain.video(), scored.video())


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


SHORT_T = handle.chunk_size
SHORT_CHARGE_MILS = (SHORT_T + 1) * PRICE_MILS


def short_actions(seed):
    return some_actions(seed)[:SHORT_T]


def episodes(folder, rows, bad=(), first_seed=1000):
    """A folder of frames and actions as an episode recorder leaves it; `bad` rows have one action dimension too many."""
    folder.mkdir()
    for n, row in enumerate(rows):
        actions = short_actions(first_seed + n)
        if row in bad:
            actions = np.concatenate([actions, actions[:, :1]], axis=1)
        (folder / f"{row}.png").write_bytes(png_bytes(start_frame()))
        (folder / f"{row}.npy").write_bytes(npy_bytes(actions))
    return folder


def check_records(records, rows, source):
    """What a sink wrote of each row; the ledger has each of these requests once, at its exact price."""
    assert sorted(record["row_id"] for record in records) == sorted(rows), records
    for record in records:
        assert record["file_name"] == f"videos/{record['row_id']}.mp4", record
        assert record["status"] == 200 and record["spec"] == handle.slug and record["engine_wall_ms"] > 0, record
        assert abs(record["estimated_charge_usd"] - SHORT_CHARGE_MILS / 10_000) < 1e-9, record
        assert source(record), record
    entries = [row for row in client.billing.transactions(limit=200)]
    for record in records:
        own = [entry for entry in entries if entry.id == record["request_id"]]
        assert [(entry.kind, entry.amount_mils) for entry in own] == [("debit", -SHORT_CHARGE_MILS)], own


def check_video(mp4):
    with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
        file.write(mp4)
        file.flush()
        video = mediapy.read_video(file.name)
    assert video.shape == (SHORT_T + 1, H, W, 3), video.shape


def check_bad_row(failures, row):
    assert [failure.row_id for failure in failures] == [row], failures
    [failure] = failures
    assert isinstance(failure.error, dream.ValidationError) and failure.error.status_code == 422, failure
    assert failure.attempts == 1 and f"(T, {DIM})" in str(failure.error), failure


def check_folder(out, rows, source_folder):
    records = parquet.read_table(out / "metadata.parquet").to_pylist()
    check_records(records, rows, lambda record: record["source_path"] == str(source_folder))
    assert sorted(path.name for path in (out / "videos").iterdir()) == sorted(f"{row}.mp4" for row in rows)
    for record in records:
        check_video((out / record["file_name"]).read_bytes())


def fills_a_folder_from_a_folder_and_skips_a_bad_row():
    rows = [f"ep-{n:03d}" for n in range(6)]
    with tempfile.TemporaryDirectory() as home:
        source = episodes(Path(home) / "in", rows, bad=("ep-002",))
        estimate = client.estimate_cost(frames_from_dir(source), spec=handle.slug)
        assert (estimate.rows, estimate.frames_per_row) == (6, SHORT_T + 1), estimate
        assert estimate.spec == handle.slug and estimate.price_per_frame_usd == PRICE_MILS / 10_000, estimate
        assert abs(estimate.total_usd - 6 * SHORT_CHARGE_MILS / 10_000) < 1e-9, estimate
        out = Path(home) / "out"
        before = balance()
        result = client.predict_many(
            frames_from_dir(source), DirRolloutSink(out), spec=handle.slug, concurrency=3, progress=False
        )
        assert (result.ok, result.failed, result.total) == (5, 1, 6), result
        assert result.output_uri == str(out.resolve()), result
        check_bad_row(result.failures, "ep-002")
        assert before - balance() == 5 * SHORT_CHARGE_MILS
        check_folder(out, [row for row in rows if row != "ep-002"], source)


def fills_a_bucket_from_a_bucket():
    bucket = os.environ["S3_BUCKET"]
    kwargs = {"endpoint_url": os.environ["S3_ENDPOINT"]}
    s3 = boto3.client("s3", **kwargs)
    prefix = f"run-{os.getpid()}"
    rows = [f"night/ep-{n}" for n in range(4)]
    for n, row in enumerate(rows):
        s3.put_object(Bucket=bucket, Key=f"{prefix}/in/{row}.png", Body=png_bytes(start_frame()))
        s3.put_object(Bucket=bucket, Key=f"{prefix}/in/{row}.npy", Body=npy_bytes(short_actions(2000 + n)))
    s3.put_object(Bucket=bucket, Key=f"{prefix}/in/without-actions.png", Body=png_bytes(start_frame()))

    source = frames_from_s3(f"s3://{bucket}/{prefix}/in/", boto3_kwargs=kwargs)
    estimate = client.estimate_cost(source, spec=handle.slug)
    assert (estimate.rows, estimate.total_frames) == (4, 4 * (SHORT_T + 1)), estimate
    before = balance()
    sink = S3RolloutSink(f"s3://{bucket}/{prefix}/out", boto3_kwargs=kwargs)
    result = client.predict_many(source, sink, spec=handle.slug, concurrency=4, progress=False)
    assert (result.ok, result.failed) == (4, 0), result
    assert result.output_uri == f"s3://{bucket}/{prefix}/out/", result
    assert before - balance() == 4 * SHORT_CHARGE_MILS

    def stored(name):
        return s3.get_object(Bucket=bucket, Key=f"{prefix}/out/{name}")["Body"].read()

    records = parquet.read_table(io.BytesIO(stored("metadata.parquet"))).to_pylist()
    check_records(
        records, rows, lambda record: record["s3_uri"] == f"s3://{bucket}/{prefix}/in/{record['row_id']}.png"
    )
    for record in records:
        check_video(stored(record["file_name"]))


def fills_a_folder_asynchronously():
    rows = [f"row{n}" for n in range(5)]

    async def run(source, out):
        async with dream.AsyncClient(api_key=API_KEY, base_url=BASE_URL) as other:
            estimate = await other.estimate_cost(frames_from_dir(source), spec=handle.slug)
            assert (estimate.rows, estimate.total_frames) == (5, 5 * (SHORT_T + 1)), estimate
            return await other.predict_many(
                frames_from_dir(source), RolloutSink.dir(out), spec=handle.slug, concurrency=4, progress=False
            )

    with tempfile.TemporaryDirectory() as home:
        source = episodes(Path(home) / "in", rows, bad=("row4",), first_seed=3000)
        out = Path(home) / "out"
        before = balance()
        result = asyncio.run(run(source, out))
        assert (result.ok, result.failed) == (4, 1), result
        check_bad_row(result.failures, "row4")
        assert before - balance() == 4 * SHORT_CHARGE_MILS
        check_folder(out, rows[:4], source)


def halts_at_a_bad_row_and_keeps_what_was_paid_for():
    rows = [f"row{n}" for n in range(8)]

    def halt(source, out):
        client.predict_many(
            frames_from_dir(source), DirRolloutSink(out), spec=handle.slug, concurrency=1, on_error="halt", progress=False
        )

    def halt_async(source, out):
        async def run():
            async with dream.AsyncClient(api_key=API_KEY, base_url=BASE_URL) as other:
                await other.predict_many(
                    frames_from_dir(source),
                    DirRolloutSink(out),
                    spec=handle.slug,
                    concurrency=1,
                    on_error="halt",
                    progress=False,
                )

        asyncio.run(run())

    for n, how in enumerate((halt, halt_async)):
        with tempfile.TemporaryDirectory() as home:
            source = episodes(Path(home) / "in", rows, bad=("row1",), first_seed=4000 + 100 * n)
            out = Path(home) / "out"
            before = balance()
            error = raises(dream.ValidationError, lambda: how(source, out))
            assert error.status_code == 422, error
            written = sorted(path.stem for path in (out / "videos").iterdir())
            assert "row0" in written and "row1" not in written and len(written) < 7, written
            assert before - balance() == len(written) * SHORT_CHARGE_MILS, written
            check_folder(out, written, source)


def halts_without_credits_whatever_it_was_told():
    poor = dream.Client(api_key=os.environ["POOR_API_KEY"], base_url=BASE_URL)
    before = poor.billing.balance().balance_mils
    with tempfile.TemporaryDirectory() as home:
        source = episodes(Path(home) / "in", ["row0", "row1", "row2"])
        out = Path(home) / "out"
        error = raises(
            dream.InsufficientCreditsError,
            lambda: poor.predict_many(frames_from_dir(source), DirRolloutSink(out), on_error="skip", progress=False),
        )
        assert error.requested_mils == SHORT_CHARGE_MILS and error.balance_mils == before, vars(error)
        assert list((out / "videos").iterdir()) == []
    assert poor.billing.balance().balance_mils == before


def ended(rollout_id):
    """Polls as the client's users do, with its own connection; every poll is answered, and says when to ask again."""
    for _ in range(60):
        answer = client._http.get(f"/v1/rollouts/{rollout_id}", params={"wait": 5})
        assert answer.status_code == 200, answer.text
        if answer.json()["status"] not in ("queued", "running"):
            return answer.json()
        assert int(answer.headers["Retry-After"]) >= 1
    raise AssertionError(f"{rollout_id} did not end")


def submits_without_waiting():
    key = f"suite-async-{os.getpid()}-{np.random.default_rng().integers(1 << 62)}"
    before = balance()
    submitted = dict(
        start_frame=start_frame(),
        actions=some_actions(60),
        seed=2**63 + 5,
        mode="async",
        idempotency_key=key,
        webhook_url="https://hooks.invalid/dream",
    )
    rollout = handle.predict(**submitted)
    assert rollout.id.startswith("rollout_") and len(rollout.id) == len("rollout_") + 32
    assert rollout.model == handle.slug and rollout.frames == FRAMES and rollout.resolution == (H, W)
    assert rollout.seed == 2**63 + 5 and rollout.created > 1_700_000_000
    assert abs(rollout.cost_usd - CHARGE_MILS / 10_000) < 1e-9
    assert json.loads(rollout.to_json())["object"] == "rollout"
    assert before - balance() == CHARGE_MILS
    assert handle.predict(**submitted).id == rollout.id and before - balance() == CHARGE_MILS

    envelope = ended(rollout.id)
    assert envelope["status"] == "succeeded" and envelope["mode"] == "async", envelope
    assert envelope["frames_done"] == envelope["frames_total"] == FRAMES, envelope
    assert envelope["webhook_url"] == "https://hooks.invalid/dream"
    assert dream.Rollout.from_json_envelope(envelope).video().shape == (FRAMES, H, W, 3)
    # Submitted again, or waited for, under its key: the whole rollout, at no charge.
    assert handle.predict(**submitted).video().shape == (FRAMES, H, W, 3)
    waited = handle.predict(start_frame=start_frame(), actions=some_actions(60), seed=2**63 + 5, idempotency_key=key)
    assert waited.id == rollout.id and waited.engine_wall_ms > 0
    assert before - balance() == CHARGE_MILS


def has_no_video_before_it_is_made():
    # Cancelled at once; what was not done by then costs nothing.
    before = balance()
    rollout = handle.predict(start_frame=start_frame(), actions=some_actions(61), mode="async")
    cancelled = client._http.post(f"/v1/rollouts/{rollout.id}/cancel")
    if cancelled.status_code == 409:  # it was faster
        assert "succeeded" in cancelled.json()["detail"], cancelled.text
        return
    assert cancelled.status_code == 200 and cancelled.json()["status"] == "cancelled", cancelled.text
    raises(ValueError, dream.Rollout.from_json_envelope(cancelled.json()).mp4_bytes)
    assert balance() == before


def says_what_is_wrong_with_a_submission():
    before = balance()
    for wrong in ("ftp://example.com", "not a url", "http://127.0.0.1:1/hook", "http://169.254.169.254/latest"):
        error = raises(
            dream.ValidationError,
            lambda: handle.predict(start_frame=start_frame(), actions=some_actions(62), mode="async", webhook_url=wrong),
        )
        assert error.status_code == 422 and "webhook_url" in str(error), str(error)
    error = raises(
        dream.ValidationError,
        lambda: handle.predict(start_frame=start_frame(), actions=some_actions(62), mode="later"),
    )
    assert error.status_code == 422 and "params.mode" in str(error), str(error)
    assert balance() == before


def submits_many_asynchronously():
    async def run():
        async with dream.AsyncClient(api_key=API_KEY, base_url=BASE_URL) as other:
            model = next(one for one in await other.models.list() if one.active)
            rollouts = await asyncio.gather(
                *(
                    model.predict(start_frame=start_frame(), actions=some_actions(70 + i), mode="async")
                    for i in range(4)
                )
            )
            assert len({rollout.id for rollout in rollouts}) == 4
            return [rollout.id for rollout in rollouts]

    before = balance()
    ids = asyncio.run(run())
    assert all(ended(rollout_id)["status"] == "succeeded" for rollout_id in ids)
    assert before - balance() == 4 * CHARGE_MILS
    page = client._http.get("/v1/rollouts", params={"limit": 4}).json()
    assert {row["id"] for row in page["data"]} == set(ids) and page["object"] == "list", page


CHECKS = [
    lists_models,
    gets_a_model_with_its_spec,
    names_an_unknown_model,
    predicts_with_an_envelope,
    scores_a_rollout_for_the_same_price,
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
    fills_a_folder_from_a_folder_and_skips_a_bad_row,
    fills_a_bucket_from_a_bucket,
    fills_a_folder_asynchronously,
    halts_at_a_bad_row_and_keeps_what_was_paid_for,
    halts_without_credits_whatever_it_was_told,
    submits_without_waiting,
    has_no_video_before_it_is_made,
    says_what_is_wrong_with_a_submission,
    submits_many_asynchronously,
]

for check in CHECKS:
    try:
        check()
        print(json.dumps({"name": check.__name__, "error": None}), flush=True)
    except Exception:
        print(json.dumps({"name": check.__name__, "error": traceback.format_exc()}), flush=True)
