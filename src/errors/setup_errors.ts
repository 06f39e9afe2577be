import type { ErrorSpec } from "./spec.ts";

/** Configuration, command line, models and tokenizers: what is found before work begins. */
export const setupErrors = {
  // --- configuration and command line -----------------------------------------------------------------------------------
  CONFIG_INVALID: {
    scope: "process",
    status: 500,
    message: "{count} problem(s) in the configuration:\n{problems}",
    remedy: "correct the marked places; `kvt config check FILE` reads the file without starting anything",
  },
  USAGE: {
    scope: "process",
    status: 500,
    message: "{what}",
    remedy: "{remedy}",
  },
  BIND_FAILED: {
    scope: "process",
    status: 500,
    message: "can't listen on {host}:{port}: {why}",
    remedy: "choose another port, or end the process that uses it",
  },
  START_TIMEOUT: {
    scope: "process",
    status: 503,
    message: "not ready within {seconds} s: {missing}",
    remedy: "look at the logs of the servers named, or raise --server_start_timeout",
  },
  DEMO_FAILED: {
    scope: "process",
    status: 500,
    message: 'the demo does not show what it should: {why} (answer: "{answer}")',
    remedy: "please report it with the output of kvt demo --keep",
  },
  MEMBER_ENDED: {
    scope: "process",
    status: 500,
    message: "{name} ended while it was starting ({outcome}); the end of its log:\n{log}",
    remedy: "start it alone with kvt serve or kvt disaggregated to see more",
  },
  SERVER_ANSWER: {
    scope: "call",
    status: 502,
    message: "{server} gave {why}",
    remedy: "look at the server's log; kvt client --server-start-timeout waits for one that is starting",
  },
  // --- models -----------------------------------------------------------------------------------------------------------
  MODEL_UNREADABLE: {
    scope: "process",
    status: 500,
    message: "the model file {file} can't be read: {why}",
    remedy: "give the path of a GGUF file that this user may read",
  },
  MODEL_INVALID: {
    scope: "process",
    status: 500,
    message: "the model file {file} is damaged or no GGUF file: {why}",
    remedy: "fetch or convert the file again and compare its size and hash",
  },
  MODEL_UNSUPPORTED: {
    scope: "process",
    status: 500,
    message: "the model file {file} needs what the reference engine does not have: {why}",
    remedy: "use a Llama-family GGUF with F32, F16, BF16, Q8_0, Q4_0, Q4_1 or Q6_K tensors, or plug in another engine",
  },
  // --- tokenizer --------------------------------------------------------------------------------------------------------
  TOKENIZER_UNSUPPORTED: {
    scope: "process",
    status: 500,
    message: "the model's tokenizer is of a kind that is not supported: {key} = {value}",
    remedy: "use a model whose {key} is one of: {known}",
  },
  TOKENIZER_BROKEN: {
    scope: "process",
    status: 500,
    message: "the tokenizer in the model file contradicts itself: {why}",
    remedy: "convert the model to GGUF again",
  },
  TOKENIZER_BUSY: {
    scope: "instance",
    status: 429,
    message: "{queued} long prompts wait to be tokenised already",
    remedy: "retry later, or send token ids",
  },
  TOKENIZER_FAILED: {
    scope: "call",
    status: 500,
    message: "tokenising a text of {chars} characters failed: {why}",
    remedy: "please report it with the log lines around it",
  },
  PROMPT_UNBROKEN: {
    scope: "call",
    status: 413,
    message: "the prompt holds {chars} characters without the end of a word, the limit is {limit}",
    remedy: "break the text up, or send token ids",
  },
} as const satisfies Record<string, ErrorSpec>;
