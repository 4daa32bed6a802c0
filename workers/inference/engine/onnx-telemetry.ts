/**
 * ONNX Runtime, from 1.29 on, reports the models that it opens and how they run to its makers, and keeps an id of the
 * machine in the home folder, unless the environment has this before it is loaded
 * (https://github.com/microsoft/onnxruntime/pull/27379). What customers run here is nobody's business.
 */
export const NO_TELEMETRY = { ORT_DISABLE_TELEMETRY: "1" } as const;
