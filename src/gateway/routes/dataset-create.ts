/** `POST /v1/datasets`: a manifest or an archive, read as it arrives. */
import type { FastifyInstance, FastifyRequest } from "fastify";
import { Type } from "typebox";

import { ApiError } from "#contract/errors.ts";
import { newDatasetId, type DatasetId } from "#contract/ids.ts";
import { DATASET_BODY_BYTES_MAX, DATASET_PROBLEMS_LISTED, DATASET_ROWS_MAX } from "#contract/limits.ts";
import {
  beginDataset,
  deleteInputs,
  type Earlier,
  findEarlier,
  finishReceiving,
  keepReceiving,
  type NewDataset,
} from "#datasets/create.ts";
import { type CreateParams, parseCreateParams } from "#datasets/create-params.ts";
import type { Dataset } from "#datasets/dataset.ts";
import { datasetContext, findDataset } from "#datasets/find.ts";
import { datasetEnvelope, DatasetEnvelope } from "#datasets/envelope.ts";
import { createBodyFingerprint, receiveBody } from "#datasets/receive.ts";
import { rejectDataset } from "#datasets/reject.ts";
import { samplingParams } from "#inputs/params.ts";
import { createSlots } from "#platform/slots.ts";

import { type DatasetForm, withDatasetForm } from "../input/dataset-form.ts";
import type { Model } from "../models.ts";
import { identityOf } from "../plugins/keys.ts";
import { requestIdOf } from "../plugins/request-id.ts";
import type { RouteParts } from "../route-parts.ts";
import { createUploadSlots } from "../upload-slots.ts";
import { formOfAtMost } from "../plugins/paid-form.ts";
import { IdempotencyHeaders, idempotencyKeyOf } from "./forms.ts";

const DatasetFormSchema = Type.Object({
  params: Type.Optional(
    Type.String({
      description:
        "JSON text, before the file: {name, model, on_invalid, budget_mils or budget_usd, start, webhook_url, " +
        "metadata}, and seed, num_steps, guidance, prompt for rows that say nothing of their own.",
      examples: ['{"name": "evening", "budget_usd": "25.00"}'],
    }),
  ),
  manifest: Type.Optional(
    Type.String({
      format: "binary",
      description: "JSON lines: {id, start_frame, actions, num_actions, seed, num_steps, guidance, prompt, metadata}.",
    }),
  ),
  archive: Type.Optional(
    Type.String({
      format: "binary",
      description: "Instead of a manifest: a zip, tar or tar.gz of <id>.png (or .jpg) and <id>.npy.",
    }),
  ),
});

/** Reads of stored inputs at once, each of up to 32 MB. */
const INPUT_READS_AT_ONCE = 4;

/** Made now, or before by the same request under the same idempotency key. */
type Sent = { readonly kind: "new"; readonly dataset: Dataset } | { readonly kind: "again"; readonly id: DatasetId };

export function addDatasetCreateRoute(app: FastifyInstance, parts: RouteParts): void {
  const { db, blobs, models, baseModel, config, random, clock, queues, keyed, publicUrl, payable, background } = parts;
  const slots = createUploadSlots();
  const quotas = parts.quotas.datasets;
  const receiver = { db, blobs, quotas, reads: createSlots(INPUT_READS_AT_ONCE) };
  const allowPrivateUrls = config.OUTBOUND_PRIVATE === "on";

  app.post(
    "/v1/datasets",
    {
      onRequest: [...keyed, formOfAtMost(DATASET_BODY_BYTES_MAX), payable.unlessRepeated],
      config: { form: DatasetFormSchema, arrivesSteadily: true },
      schema: {
        summary: "Make a dataset of a manifest or an archive",
        description:
          `At most ${DATASET_ROWS_MAX} rows, checked one by one: bad ones are listed with line and reason, the rest go on, ` +
          'unless `on_invalid` is "reject". Nothing is charged here: rows are, as they are run.',
        tags: ["datasets"],
        headers: IdempotencyHeaders,
        response: { 200: DatasetEnvelope, 201: DatasetEnvelope },
      },
    },
    async (request, reply) => {
      const giveBack = slots.take(identityOf(request).customer_id);
      try {
        const sent = await receive(request);
        const dataset = sent.kind === "new" ? sent.dataset : await made(sent.id, request);
        reply.code(sent.kind === "new" ? 201 : 200);
        reply.header("Location", `${publicUrl(request)}/v1/datasets/${dataset.id}`);
        return await envelope(request, dataset);
      } finally {
        giveBack();
      }
    },
  );

  async function made(id: DatasetId, request: FastifyRequest): Promise<Dataset> {
    const dataset = await findDataset(db, id, identityOf(request).customer_id);
    if (!dataset) throw new Error(`dataset ${id} vanished`); // they are never deleted
    return dataset;
  }

  async function envelope(request: FastifyRequest, dataset: Dataset): Promise<DatasetEnvelope> {
    const around = {
      retentionMs: parts.retentionMs,
      idleMs: parts.idleMs,
      publicUrl: publicUrl(request),
      nowMs: clock.now(),
      problemsMax: DATASET_PROBLEMS_LISTED,
    };
    return datasetEnvelope(dataset, await datasetContext(db, dataset, around));
  }

  async function receive(request: FastifyRequest): Promise<Sent> {
    const key = idempotencyKeyOf(request);
    const { customer_id } = identityOf(request);
    let begun: DatasetId | undefined;
    let stopBeating: (() => void) | undefined;
    try {
      const received = await withDatasetForm(request, async (form) => {
        const params = parseCreateParams(form.params, allowPrivateUrls);
        const model = models.ofRequest(params.model, baseModel(request));
        samplingParams(params.defaults, model.manifest);
        const earlier = key === null ? null : await findEarlier(db, customer_id, key);
        if (earlier) return compare(earlier, form, model);
        await payable.check(request);
        const dataset = newDataset(request, params, model, key);
        const earlierNow = await beginDataset(db, dataset, quotas);
        if (earlierNow) return compare(earlierNow, form, model);
        begun = dataset.id;
        stopBeating = keepReceiving(db, dataset.id);
        return await ingest(dataset, form, model);
      });
      // Not before the form has ended as it should.
      return "finish" in received ? { kind: "new", dataset: await received.finish() } : received;
    } catch (error) {
      if (begun !== undefined) await reject(begun, error);
      throw error;
    } finally {
      stopBeating?.();
    }
  }

  function newDataset(request: FastifyRequest, params: CreateParams, model: Model, key: string | null): NewDataset {
    const { customer_id, key_id } = identityOf(request);
    const request_id = requestIdOf(request);
    const id = newDatasetId(random);
    return { id, customer_id, key_id, request_id, model: model.slug, idempotency_key: key, params };
  }

  async function ingest(dataset: NewDataset, form: DatasetForm, model: Model): Promise<{ finish(): Promise<Dataset> }> {
    const { id, customer_id, params } = dataset;
    const fingerprint = createBodyFingerprint(model.slug, form.params, form.part);
    const rules = { model: model.manifest, defaults: params.defaults, allowPrivateUrls };
    const { message, whole } = await receiveBody(
      receiver,
      { datasetId: id, customerId: customer_id, onInvalid: params.on_invalid, rules },
      { part: form.part, chunks: fingerprint.of(form.chunks) },
    );
    async function finish(): Promise<Dataset> {
      const received = { fingerprint: fingerprint.digest(), start: params.start, message };
      const finished = await finishReceiving(db, id, received);
      if (params.start) await queues.signals.publish({ kind: "dataset" });
      return finished;
    }
    // What is still on its way of a dataset that is rejected already need not be waited for.
    if (!whole) await finish();
    return { finish };
  }

  async function reject(id: DatasetId, error: unknown): Promise<void> {
    const message =
      error instanceof ApiError && error.status < 500
        ? error.message
        : "the server could not receive it; send it again";
    // Where this fails, too, the sweep rejects it some minutes later.
    if (await rejectDataset(db, id, message)) {
      background.run("delete the inputs of a rejected dataset", () => deleteInputs(blobs, id));
    }
  }
}

/** The same request as before gives the same dataset. Throws ApiError(idempotency_mismatch) for another. */
async function compare({ id, fingerprint }: Earlier, form: DatasetForm, model: Model): Promise<Sent> {
  const own = createBodyFingerprint(model.slug, form.params, form.part);
  for await (const chunk of own.of(form.chunks)) void chunk;
  if (fingerprint?.equals(own.digest())) return { kind: "again", id };
  throw new ApiError(
    "idempotency_mismatch",
    "this Idempotency-Key was used before with another dataset; expected the same bytes, or another key",
  );
}
