# syntax=docker/dockerfile:1
# An inference worker for NVIDIA devices. How to build and run it, and what of this was tried: docs/gpu.md
#
#   docker build -f infra/docker/worker-gpu.Dockerfile --target worker-cuda -t dream-engine-worker-cuda .

# ONNX Runtime's libraries for NVIDIA devices. The npm package brings them by an install script, which our installation
# does not run (package.json, allowScripts). Those of the Python package are of the same build: same version, same commit
# in their core. They need CUDA 13.
FROM python:3.12-slim-bookworm AS providers
WORKDIR /providers
COPY infra/docker/onnxruntime-gpu.txt ./
RUN pip download --no-cache-dir --no-deps --require-hashes --dest wheel --requirement onnxruntime-gpu.txt \
    && python -m zipfile -e wheel/onnxruntime_gpu-*.whl unpacked

FROM node:24-bookworm-slim AS dependencies
WORKDIR /app
COPY package.json package-lock.json ./
RUN npm ci --omit=dev --no-audit --no-fund
COPY --from=providers \
    /providers/unpacked/onnxruntime/capi/libonnxruntime_providers_shared.so \
    /providers/unpacked/onnxruntime/capi/libonnxruntime_providers_cuda.so \
    /providers/unpacked/onnxruntime/capi/libonnxruntime_providers_tensorrt.so \
    node_modules/onnxruntime-node/bin/napi-v6/linux/x64/

FROM nvidia/cuda:13.0.1-cudnn-runtime-ubuntu24.04 AS worker-cuda
COPY --from=dependencies /usr/local/bin/node /usr/local/bin/node
WORKDIR /app
COPY --from=dependencies /app/node_modules ./node_modules
COPY package.json ./
COPY src ./src
COPY workers ./workers
COPY scheduler ./scheduler
COPY models ./models
# Numbers of devices are those that nvidia-smi shows. The driver and nvidia-smi come from the host, by `--gpus`.
ENV ORT_PROVIDERS=cuda,cpu \
    CUDA_DEVICE_ORDER=PCI_BUS_ID \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    HOME=/tmp \
    ORT_DISABLE_TELEMETRY=1 \
    HOST=0.0.0.0 \
    METRICS_PORT=9090
EXPOSE 9090
USER 10001
# /readyz answers 200 once the bundle is loaded and warm.
HEALTHCHECK --interval=10s --timeout=3s --start-period=300s \
    CMD ["node", "-e", "fetch(`http://127.0.0.1:${process.env.METRICS_PORT}/readyz`).then(({ ok }) => process.exit(ok ? 0 : 1), () => process.exit(1))"]
ENTRYPOINT ["node", "src/cli/main.ts", "worker"]

# TensorRT 10 for CUDA 13, from NVIDIA's repository, which the base image knows.
FROM worker-cuda AS worker-tensorrt
ARG TENSORRT_VERSION=10.13.3.9-1+cuda13.0
USER 0
RUN apt-get update \
    && apt-get install --yes --no-install-recommends \
        "libnvinfer10=${TENSORRT_VERSION}" "libnvonnxparsers10=${TENSORRT_VERSION}" \
    && rm -rf /var/lib/apt/lists/*
USER 10001
ENV ORT_PROVIDERS=tensorrt,cuda,cpu
