/*
 * mistral.h: run Mistral's open-weight language models inside of your program.
 *
 * Generated from the crate mistral-ffi; do not edit.
 *
 * The rules, once for all functions:
 *
 * - A function that can fail returns a mistral_status. 0 is MISTRAL_OK; mistral_last_error has the details of any other.
 *   Results go to the last parameters and are written only on success, unless a function says otherwise.
 * - Handles (mistral_model *, mistral_session *, ...) are never dereferenced by the library. One that was freed, is of
 *   another type or never existed is refused with MISTRAL_E_HANDLE; one that was made before fork(), in the child, with
 *   MISTRAL_E_FORKED. Each is freed by the function that its type is named in, in any order: what an object needs
 *   stays alive with it. Freeing NULL does nothing.
 * - The child of a fork() can open models of its own, if no thread of its parent was opening or freeing one at that
 *   moment: of a thread that starts or ends, the child inherits locks that nobody unlocks.
 * - Text goes in as UTF-8 with a length in bytes; it needs no NUL, and a NUL in it is a character like others. Text that
 *   comes out is UTF-8 and has a NUL behind it that the length does not count.
 * - Options and requests are JSON objects. An unknown key, or a value of the wrong type, is refused with
 *   MISTRAL_E_ARGUMENT, and the message names it.
 * - const handles may be used by several threads at once, others by one at a time. Where two threads collide on an
 *   object, or a callback uses the object that called it, the library does not wait: MISTRAL_E_BUSY.
 * - Pointers are checked for NULL: MISTRAL_E_NULL. MISTRAL_NULLABLE marks those that may be; both markers are empty
 *   unless you define them before the #include.
 * - Structs begin with struct_size and only grow at the end. New functions, statuses and keys may come; nothing that is
 *   here changes its meaning.
 * - The library prints nothing, reads no environment variable, opens no socket, installs no signal handler and writes no
 *   file that it was not asked to write.
 */


#ifndef MISTRAL_H
#define MISTRAL_H

#include <stddef.h>
#include <stdint.h>

#ifndef MISTRAL_API
#if defined(_WIN32) && !defined(MISTRAL_STATIC)
#define MISTRAL_API __declspec(dllimport)
#else
#define MISTRAL_API
#endif
#endif

#ifndef MISTRAL_NULLABLE
#define MISTRAL_NULLABLE
#endif
#ifndef MISTRAL_NONNULL
#define MISTRAL_NONNULL
#endif


/**
 * The major version of the library; the part of its soname.
 */
#define MISTRAL_VERSION_MAJOR 1

/**
 * The minor version.
 */
#define MISTRAL_VERSION_MINOR 0

/**
 * The patch version.
 */
#define MISTRAL_VERSION_PATCH 0

/**
 * The generation goes on.
 */
#define MISTRAL_FINISH_NONE 0

/**
 * The model ended its answer, or a stop text or token came.
 */
#define MISTRAL_FINISH_STOP 1

/**
 * `max_tokens` was reached.
 */
#define MISTRAL_FINISH_LENGTH 2

/**
 * The session has no position left.
 */
#define MISTRAL_FINISH_CONTEXT_FULL 3

/**
 * Something failed that should not have.
 */
#define MISTRAL_LOG_ERROR 1

/**
 * Bytes that the library made, most often UTF-8 text. Free them with `mistral_buf_free`, which overwrites
 * them with zeros.
 */
typedef struct mistral_buf mistral_buf;

/**
 * Stops calls that were given it, from any thread.
 */
typedef struct mistral_cancel mistral_cancel;

/**
 * A generation that is asked for one event at a time. It keeps its session to itself until it is freed.
 */
typedef struct mistral_generation mistral_generation;

/**
 * A model that was opened: immutable, for any number of sessions and threads.
 */
typedef struct mistral_model mistral_model;

/**
 * One timeline of tokens on a model, with its cache. It keeps its model alive.
 */
typedef struct mistral_session mistral_session;

/**
 * What a call came to: `MISTRAL_OK` or one of the `MISTRAL_E_...` numbers. The numbers are frozen; new ones
 * may be added.
 */
typedef int32_t mistral_status;

/**
 * Is given what the library has to say: `level` is a `MISTRAL_LOG_...` number; `message` is `len` bytes of
 * UTF-8, followed by a NUL, that live until it returns. It may be called from any thread, several at once,
 * threads of the library included. It must return: no exception, no `longjmp`.
 */
typedef void (*mistral_log_fn)(void *user_data,
                               int32_t level,
                               const char *message,
                               size_t len);

/**
 * How far a long call has come.
 */
typedef struct mistral_progress {
  /**
   * The size of this struct in the library; members beyond it do not exist.
   */
  size_t struct_size;
  /**
   * What is being done: `"verify"`, `"load"`, `"prefill"`, `"digest"`, `"audit"`; others may come. NUL-terminated.
   */
  const char *phase;
  /**
   * Units done: tokens while prefilling, otherwise bytes.
   */
  uint64_t done;
  /**
   * Units in all.
   */
  uint64_t total;
} mistral_progress;

/**
 * Is told of progress. `progress` lives until it returns. Non-zero stops the call with
 * `MISTRAL_E_CANCELLED`. It must return: no exception, no `longjmp`.
 */
typedef int32_t (*mistral_progress_fn)(void *user_data,
                                       const struct mistral_progress *progress);

/**
 * A token and the natural logarithm of its probability.
 */
typedef struct mistral_token_logprob {
  /**
   * The token.
   */
  uint32_t token;
  /**
   * Its log-probability.
   */
  float logprob;
} mistral_token_logprob;

/**
 * One step of a generation: exactly one for each token.
 */
typedef struct mistral_event {
  /**
   * The size of this struct in the library; members beyond it do not exist.
   */
  size_t struct_size;
  /**
   * Text that became certain with this token: whole UTF-8 characters, often none, never part of a stop
   * text. A NUL follows it.
   */
  const char *text;
  /**
   * Bytes of `text`, without the NUL.
   */
  size_t text_len;
  /**
   * The token.
   */
  uint32_t token;
  /**
   * `MISTRAL_FINISH_NONE`, or on the last event why it is the last.
   */
  int32_t finish_reason;
  /**
   * The token's log-probability in the model's own distribution; not a number unless the options ask for
   * it.
   */
  float logprob;
  /**
   * How many `top_logprobs` there are; 0 unless the options ask for them.
   */
  uint32_t top_logprobs_len;
  /**
   * The most probable tokens, best first.
   */
  const struct mistral_token_logprob *top_logprobs;
} mistral_event;

/**
 * Is given each event of a generation. `event` lives until it returns. Non-zero stops the call with
 * `MISTRAL_E_CANCELLED`. It must return: no exception, no `longjmp`.
 */
typedef int32_t (*mistral_event_fn)(void *user_data,
                                    const struct mistral_event *event);

/**
 * Is given each chunk of a streamed chat: `len` bytes of UTF-8 JSON, followed by a NUL, that live until it
 * returns. Non-zero stops the call with `MISTRAL_E_CANCELLED`. It must return: no exception, no `longjmp`.
 */
typedef int32_t (*mistral_chunk_fn)(void *user_data,
                                    const char *chunk,
                                    size_t len);

/**
 * The call did what it says.
 */
#define MISTRAL_OK 0

/**
 * A pointer that must not be NULL is NULL.
 */
#define MISTRAL_E_NULL 1

/**
 * An argument, an option or a field of a request is wrong.
 */
#define MISTRAL_E_ARGUMENT 2

/**
 * Text is not UTF-8.
 */
#define MISTRAL_E_UTF8 3

/**
 * A handle was freed already, is of another type, or never was one.
 */
#define MISTRAL_E_HANDLE 4

/**
 * Another call is using the object, perhaps the one whose callback made this call.
 */
#define MISTRAL_E_BUSY 5

/**
 * The system gives no more memory.
 */
#define MISTRAL_E_NO_MEMORY 6

/**
 * A bound on size, time or work would be passed.
 */
#define MISTRAL_E_LIMIT 7

/**
 * The system refused to open, read or map a file.
 */
#define MISTRAL_E_IO 8

/**
 * A file is damaged, or breaks the rules of its format.
 */
#define MISTRAL_E_FORMAT 9

/**
 * Contents do not match their digest.
 */
#define MISTRAL_E_INTEGRITY 10

/**
 * A signature is missing or wrong.
 */
#define MISTRAL_E_SIGNATURE 11

/**
 * Correct, but not something that this library, this build or this model does.
 */
#define MISTRAL_E_UNSUPPORTED 12

/**
 * The tokens do not fit into the context of the session.
 */
#define MISTRAL_E_CONTEXT_FULL 13

/**
 * The host cancelled the call.
 */
#define MISTRAL_E_CANCELLED 14

/**
 * The caller's buffer is too small; the needed size was written.
 */
#define MISTRAL_E_BUFFER_TOO_SMALL 15

/**
 * A device could not be opened, or failed.
 */
#define MISTRAL_E_DEVICE 16

/**
 * A device went away; its models must be opened again.
 */
#define MISTRAL_E_DEVICE_LOST 17

/**
 * The audit log could not be written.
 */
#define MISTRAL_E_AUDIT 18

/**
 * The handle was made before `fork`, by the parent of this process.
 */
#define MISTRAL_E_FORKED 19

/**
 * A bug of this library. The object that was in use answers this from now on, and can only be freed.
 */
#define MISTRAL_E_INTERNAL 20

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * The version of the library: `"1.2.3"`.
 *
 * Ownership: the text is static.
 * Encoding: ASCII, NUL-terminated.
 * Threads: any.
 */
MISTRAL_API
const char *mistral_version(void);

/**
 * What this build of the library is, as a JSON object: `version`, `arch`, `os`, `devices`, `sampler` (the
 * name and version of the random generator: the same seed gives the same tokens where it is the same),
 * `determinism` (for each device the levels that the option `reproducible` of `mistral_model_open` guarantees),
 * `wipes_freed_memory` (`true`: see `mistral_model_open`).
 *
 * Ownership: the caller frees `*out` with `mistral_buf_free`.
 * Encoding: UTF-8 JSON.
 * Threads: any.
 * Statuses: `MISTRAL_OK`, `MISTRAL_E_NULL`, `MISTRAL_E_NO_MEMORY`, `MISTRAL_E_LIMIT`, `MISTRAL_E_INTERNAL`.
 */
MISTRAL_API
mistral_status mistral_build_info(struct mistral_buf **MISTRAL_NONNULL out);

/**
 * The devices that this build can open on this machine, as a JSON list of objects with a `name`, which
 * `mistral_model_open` takes as the option `device`, and a `kind` (`"cpu"`, `"ndarray"`, `"wgpu"`). Those of the kind
 * `wgpu` have what their driver says of them: `adapter` (its name), `backend` (`"vulkan"`, `"metal"`, `"dx12"`), `driver`,
 * `type` (`"discrete"`, `"integrated"`, `"virtual"`, `"other"`, `"software"`), `vendor_id`, `device_id`, `memory_bytes` (null
 * where it is not said), `limits`, `f16`, `subgroups`. Where there is no driver, there are none of them.
 *
 * Ownership: the caller frees `*out` with `mistral_buf_free`.
 * Encoding: UTF-8 JSON.
 * Threads: any.
 * Statuses: `MISTRAL_OK`, `MISTRAL_E_NULL`, `MISTRAL_E_NO_MEMORY`, `MISTRAL_E_LIMIT`, `MISTRAL_E_INTERNAL`.
 */
MISTRAL_API
mistral_status mistral_devices(struct mistral_buf **MISTRAL_NONNULL out);

/**
 * The name of a status: `"MISTRAL_E_ARGUMENT"`; `"MISTRAL_E_?"` for a number that is none.
 *
 * Ownership: the text is static.
 * Encoding: ASCII, NUL-terminated.
 * Threads: any.
 */
MISTRAL_API
const char *mistral_status_name(mistral_status status);

/**
 * What a status means, in a few English words.
 *
 * Ownership: the text is static.
 * Encoding: ASCII, NUL-terminated.
 * Threads: any.
 */
MISTRAL_API
const char *mistral_status_description(mistral_status status);

/**
 * Copies out the message of the last call that failed on this thread: what failed, where, what was found,
 * what was expected; never text of a prompt or an answer. Calls that succeed leave it as it is.
 *
 * Like `snprintf`: at most `capacity` bytes are written to `message`, a final NUL included, cut between
 * characters, and the length of the whole message without the NUL comes back: 0 where no call has failed.
 *
 * Encoding: UTF-8.
 * NULL allowed: `message` if `capacity` is 0.
 * Threads: any; each has its own last error.
 */
MISTRAL_API
size_t mistral_last_error(char *MISTRAL_NULLABLE message,
                          size_t capacity);

/**
 * The last call that failed on this thread, as a JSON object: `status` (its number), `name`, `message`, and
 * the parts of the message where it has them: `argument`, `file`, `key`, `found`, `expected`, `supported`,
 * `limit`, `needed` ... `null` where no call has failed.
 *
 * Ownership: the caller frees `*out` with `mistral_buf_free`.
 * Encoding: UTF-8 JSON.
 * Threads: any; each has its own last error.
 * Statuses: `MISTRAL_OK`, `MISTRAL_E_NULL`, `MISTRAL_E_NO_MEMORY`, `MISTRAL_E_LIMIT`, `MISTRAL_E_INTERNAL`.
 */
MISTRAL_API
mistral_status mistral_last_error_json(struct mistral_buf **MISTRAL_NONNULL out);

/**
 * Sets the function that is given what the library has to say, for the whole process; NULL ends it. When
 * this returns, the function that was set before is not running and will not be called again. A library
 * without one is silent: it never writes to standard output or standard error.
 *
 * Ownership: `user_data` stays the caller's, and must live until another function is set.
 * NULL allowed: `callback`, `user_data`.
 * Threads: any, but not from within the callback.
 * Statuses: `MISTRAL_OK`, `MISTRAL_E_BUSY` (called from the callback), `MISTRAL_E_INTERNAL`.
 */
MISTRAL_API
mistral_status mistral_set_log(mistral_log_fn callback,
                               void *MISTRAL_NULLABLE user_data);

/**
 * The bytes of a buffer, followed by a NUL; NULL if `buf` is not the handle of a buffer.
 *
 * Ownership: the bytes are the buffer's, and live until it is freed.
 * Encoding: what the function that made the buffer says: most often UTF-8.
 * NULL allowed: `buf`.
 * Threads: any, several at once.
 */
MISTRAL_API
const char *mistral_buf_data(const struct mistral_buf *MISTRAL_NULLABLE buf);

/**
 * The number of bytes of a buffer, without the NUL behind them; 0 if `buf` is not the handle of a buffer.
 *
 * NULL allowed: `buf`.
 * Threads: any, several at once.
 */
MISTRAL_API
size_t mistral_buf_len(const struct mistral_buf *MISTRAL_NULLABLE buf);

/**
 * Overwrites the bytes of a buffer with zeros and frees it.
 *
 * NULL allowed: `buf`: nothing is done.
 * Threads: one at a time for each buffer.
 * Statuses: `MISTRAL_OK`, `MISTRAL_E_HANDLE`, `MISTRAL_E_FORKED`, `MISTRAL_E_INTERNAL`.
 */
MISTRAL_API
mistral_status mistral_buf_free(struct mistral_buf *MISTRAL_NULLABLE buf);

/**
 * Makes a cancel object, which stops the calls that are given it.
 *
 * Ownership: the caller frees `*out` with `mistral_cancel_free`.
 * Threads: any.
 * Statuses: `MISTRAL_OK`, `MISTRAL_E_NULL`, `MISTRAL_E_LIMIT`, `MISTRAL_E_INTERNAL`.
 */
MISTRAL_API
mistral_status mistral_cancel_new(struct mistral_cancel **MISTRAL_NONNULL out);

/**
 * Stops the calls that were given `cancel`, those that run and those to come: they end with
 * `MISTRAL_E_CANCELLED`, within one step. Not for signal handlers.
 *
 * Threads: any, several at once.
 * Statuses: `MISTRAL_OK`, `MISTRAL_E_NULL`, `MISTRAL_E_HANDLE`, `MISTRAL_E_FORKED`, `MISTRAL_E_INTERNAL`.
 */
MISTRAL_API
mistral_status mistral_cancel_trigger(const struct mistral_cancel *MISTRAL_NONNULL cancel);

/**
 * Makes a cancel object that was triggered usable again.
 *
 * Threads: any, several at once.
 * Statuses: `MISTRAL_OK`, `MISTRAL_E_NULL`, `MISTRAL_E_HANDLE`, `MISTRAL_E_FORKED`, `MISTRAL_E_INTERNAL`.
 */
MISTRAL_API
mistral_status mistral_cancel_reset(const struct mistral_cancel *MISTRAL_NONNULL cancel);

/**
 * Frees a cancel object. Calls that were given it go on.
 *
 * NULL allowed: `cancel`: nothing is done.
 * Threads: one at a time for each object.
 * Statuses: `MISTRAL_OK`, `MISTRAL_E_HANDLE`, `MISTRAL_E_FORKED`, `MISTRAL_E_INTERNAL`.
 */
MISTRAL_API
mistral_status mistral_cancel_free(struct mistral_cancel *MISTRAL_NULLABLE cancel);

/**
 * Opens the checkpoint at `path`: a folder or a file. The files are mapped, and must not change while the
 * model is open.
 *
 * `options` is a JSON object: `device` (`"cpu"`, which is the default; `"wgpu"`, the first adapter; `"wgpu:N"` or `"wgpu:NAME"`, one of those that
 * `mistral_devices` lists; `"auto"`, a graphics processor with enough memory, else `"cpu"`: `mistral_model_info` says which
 * and why), `gpu_layers` (of a device with memory of its own: how many layers go there, the last ones first, the others to
 * the processor; `"all"`; `"auto"`, the default: as many as fit), `threads`, `quantize`
 * (`"q8_0"`, `"q4_0"`, `"q4_k"`: float weights are turned into these blocks while loading), `activation`
 * (`"int8"`, `"f32"`: how activations meet weights in blocks), `weights` (`false` opens the tokenizer alone),
 * `reproducible` and `lock_memory` (see below), `tokenizer_version` (`"v3"` ...: Mistral's chat format, where the files do not tell it), `verify` (an object,
 * the options of `mistral_verify`: the model is opened only if its files are what a manifest or a signature
 * vouches for, and from the very bytes that were verified), `audit` (see below). A relative path starts at the
 * current directory, as everywhere.
 *
 * `audit` is an object that makes the model, and sessions without an `audit` of their own, write down what runs:
 * a record before and one after each evaluation and answer, chained by SHA-256 (see `mistral_audit_verify`). Its
 * keys: `path` (of the log, a regular file, which is continued if it is one; `PATH.lock` lies beside it), `required`
 * (`true`: what cannot be written down does not run, `MISTRAL_E_AUDIT`), `key` (a secret of at least 16 bytes, in hexadecimal digits or Base64, for the
 * HMAC-SHA-256 of prompts and answers; none are written without it), `text` (`true`: prompts and answers
 * themselves, too), `rotate_bytes` (the file is then renamed to `PATH.1` ... and a new one begun), `sync_every`
 * (records after which they are forced to the disk; by default the system decides), `checkpoint` (an object:
 * `path`, `every` so many records, `key`), `caller_ref` (what the host calls those for whom it runs; at most 256
 * bytes). Models and sessions of a process that name the same log share it; other processes are refused,
 * children of `fork` among them.
 *
 * `reproducible` (`true`) guarantees that the same build, device, options and seed give the same tokens: every
 * time (D1), alone or while other sequences run (D2), and with any number of threads (D3). Opening then evaluates
 * a few tokens in two ways, compares the bits, and fails with `MISTRAL_E_DEVICE` where they differ; a device that
 * cannot guarantee it is refused with `MISTRAL_E_UNSUPPORTED`. `mistral_model_info` reports the levels, and for
 * what machine they hold.
 *
 * `lock_memory` (`true`) keeps the keys and values of sessions out of the swap; where the system does not let them
 * be locked (`ulimit -l`), making a session is refused with `MISTRAL_E_LIMIT`. Not the weights, which are no secret.
 *
 * `large_pages` (`true` by default; Linux): once the model is open, a thread moves its packed weights to pages of 2 MiB, which
 * takes some seconds a gigabyte. Tokens take longer while that goes on, and are sooner there afterwards; what they are does not
 * change. `mistral_model_info` says how far it is (`weights.large_pages`: `bytes`, `of`); it ends when it is done, or with
 * the model. `false` leaves them where they are: for a model that is opened for a few tokens.
 *
 * What the library frees was overwritten before, or given back to the system, which overwrites it: prompts, tokens,
 * answers, keys and values, saved sessions and everything on the way between them. What a session forgets is
 * overwritten at once. Not reached: registers, the swap without `lock_memory`, and what the host has copied.
 *
 * Bounds, each refused with `MISTRAL_E_LIMIT` before anything is allocated for it: `max_memory` (bytes for
 * weights and caches together), `max_model_bytes` (of the files with weights), `max_sessions` (at a time, with
 * those that `mistral_chat` and `mistral_embed` make for themselves); and for every call on the model or its
 * sessions, not for opening it: `max_prompt_tokens` (tokens given to one call, or of a whole conversation),
 * `max_output_tokens` (of one answer: asking for more is refused, asking for no number ends there),
 * `max_time_ms` (milliseconds: the call ends where it could be cancelled, and a session keeps what was
 * evaluated).
 *
 * `progress` is called on the calling thread.
 *
 * Ownership: the caller frees `*out` with `mistral_model_free`; its sessions may outlive the handle.
 * Encoding: `path` and `options` are UTF-8.
 * NULL allowed: `options` if `options_len` is 0, `cancel`, `progress`, `user_data`.
 * Threads: any.
 * Statuses: `MISTRAL_OK`, `MISTRAL_E_NULL`, `MISTRAL_E_ARGUMENT`, `MISTRAL_E_UTF8`, `MISTRAL_E_HANDLE`,
 * `MISTRAL_E_NO_MEMORY`, `MISTRAL_E_LIMIT`, `MISTRAL_E_IO`, `MISTRAL_E_FORMAT`, `MISTRAL_E_INTEGRITY`,
 * `MISTRAL_E_SIGNATURE`, `MISTRAL_E_UNSUPPORTED`, `MISTRAL_E_CANCELLED`, `MISTRAL_E_DEVICE`,
 * `MISTRAL_E_AUDIT`, `MISTRAL_E_FORKED`, `MISTRAL_E_INTERNAL`.
 */
MISTRAL_API
mistral_status mistral_model_open(const char *MISTRAL_NONNULL path,
                                  size_t path_len,
                                  const char *MISTRAL_NULLABLE options,
                                  size_t options_len,
                                  const struct mistral_cancel *MISTRAL_NULLABLE cancel,
                                  mistral_progress_fn progress,
                                  void *MISTRAL_NULLABLE user_data,
                                  struct mistral_model **MISTRAL_NONNULL out);

/**
 * What a model is, as a JSON object: its architecture and shape, device, files, and what its tokenizer is. The
 * `sha256` of the files is null until a session is saved or loaded, which computes it.
 *
 * Ownership: the caller frees `*out` with `mistral_buf_free`.
 * Encoding: UTF-8 JSON.
 * Threads: any, several at once.
 * Statuses: `MISTRAL_OK`, `MISTRAL_E_NULL`, `MISTRAL_E_HANDLE`, `MISTRAL_E_NO_MEMORY`, `MISTRAL_E_LIMIT`,
 * `MISTRAL_E_FORKED`, `MISTRAL_E_INTERNAL`.
 */
MISTRAL_API
mistral_status mistral_model_info(const struct mistral_model *MISTRAL_NONNULL model,
                                  struct mistral_buf **MISTRAL_NONNULL out);

/**
 * What a model would take, without opening it: reads the headers of its files, in milliseconds, and no weights.
 *
 * `options` is a JSON object: those of `mistral_model_open`, of a session (`context`, `cache_type`), and
 * `sessions` (how many; 1 if not given). `*out` is a JSON object: `weights_bytes` (of the files), `cache_bytes`
 * (of one session), `total_bytes` (what counts against `max_memory`: weights and all caches), `context`,
 * `cache_type`, `sessions`, and `format` (`"gguf"`, `"safetensors"`), `files` (each with `path` and `bytes`),
 * `architecture`, `n_layers`, `vocab_size`, `max_context`. Activations and the program itself take some tens
 * of megabytes more. If `device` has memory of its own, or is `"auto"`: `gpu_layers` (as many as `gpu_layers` of
 * the options asks for, or all) and `device_bytes` (what these take of that memory with one session, at most: to
 * be held against `memory_bytes` of `mistral_devices`).
 *
 * What opening the model and the sessions would refuse is refused here too, as far as the headers tell: files
 * that are damaged or not supported, options out of range, bounds that it would pass.
 *
 * Ownership: the caller frees `*out` with `mistral_buf_free`.
 * Encoding: `path` and `options` are UTF-8, `*out` UTF-8 JSON.
 * NULL allowed: `options` if `options_len` is 0.
 * Threads: any.
 * Statuses: `MISTRAL_OK`, `MISTRAL_E_NULL`, `MISTRAL_E_ARGUMENT`, `MISTRAL_E_UTF8`, `MISTRAL_E_NO_MEMORY`,
 * `MISTRAL_E_LIMIT`, `MISTRAL_E_IO`, `MISTRAL_E_FORMAT`, `MISTRAL_E_UNSUPPORTED`, `MISTRAL_E_INTERNAL`.
 */
MISTRAL_API
mistral_status mistral_model_estimate(const char *MISTRAL_NONNULL path,
                                      size_t path_len,
                                      const char *MISTRAL_NULLABLE options,
                                      size_t options_len,
                                      struct mistral_buf **MISTRAL_NONNULL out);

/**
 * Gives a model up. Its memory goes when its last session has been freed and its last call has ended.
 *
 * NULL allowed: `model`: nothing is done.
 * Threads: one at a time for each model.
 * Statuses: `MISTRAL_OK`, `MISTRAL_E_HANDLE`, `MISTRAL_E_FORKED`, `MISTRAL_E_INTERNAL`.
 */
MISTRAL_API
mistral_status mistral_model_free(struct mistral_model *MISTRAL_NULLABLE model);

/**
 * Turns text into tokens.
 *
 * `options` is a JSON object: `bos` (`true` puts the beginning-of-sequence token first, if the model's
 * tokenizer wants one), `special` (`true` reads the names of control tokens as these tokens: not for text of
 * users). Both are `false` if not given.
 *
 * `*count` is written also with `MISTRAL_E_BUFFER_TOO_SMALL`: the number of tokens that there are.
 *
 * Encoding: `text` and `options` are UTF-8.
 * NULL allowed: `options` if `options_len` is 0, `tokens` if `capacity` is 0.
 * Threads: any, several at once.
 * Statuses: `MISTRAL_OK`, `MISTRAL_E_NULL`, `MISTRAL_E_ARGUMENT`, `MISTRAL_E_UTF8`, `MISTRAL_E_HANDLE`,
 * `MISTRAL_E_LIMIT`, `MISTRAL_E_UNSUPPORTED` (the model has no tokenizer), `MISTRAL_E_BUFFER_TOO_SMALL`,
 * `MISTRAL_E_FORKED`, `MISTRAL_E_INTERNAL`.
 */
MISTRAL_API
mistral_status mistral_encode(const struct mistral_model *MISTRAL_NONNULL model,
                              const char *MISTRAL_NONNULL text,
                              size_t text_len,
                              const char *MISTRAL_NULLABLE options,
                              size_t options_len,
                              uint32_t *MISTRAL_NULLABLE tokens,
                              size_t capacity,
                              size_t *MISTRAL_NONNULL count);

/**
 * Turns tokens into text. Bytes that are not UTF-8 become U+FFFD.
 *
 * `options` is a JSON object: `special` (`true` writes the names of control tokens; `false`, the default,
 * leaves them out).
 *
 * Ownership: the caller frees `*out` with `mistral_buf_free`.
 * Encoding: `options` and the text are UTF-8.
 * NULL allowed: `tokens` if `count` is 0, `options` if `options_len` is 0.
 * Threads: any, several at once.
 * Statuses: `MISTRAL_OK`, `MISTRAL_E_NULL`, `MISTRAL_E_ARGUMENT` (a token that does not exist, or the
 * options), `MISTRAL_E_UTF8`, `MISTRAL_E_HANDLE`, `MISTRAL_E_NO_MEMORY`, `MISTRAL_E_LIMIT`,
 * `MISTRAL_E_UNSUPPORTED` (the model has no tokenizer), `MISTRAL_E_FORKED`, `MISTRAL_E_INTERNAL`.
 */
MISTRAL_API
mistral_status mistral_decode(const struct mistral_model *MISTRAL_NONNULL model,
                              const uint32_t *MISTRAL_NULLABLE tokens,
                              size_t count,
                              const char *MISTRAL_NULLABLE options,
                              size_t options_len,
                              struct mistral_buf **MISTRAL_NONNULL out);

/**
 * Turns the text before and after a gap into the tokens from which a model of the Codestral family writes
 * what stands in the gap: give them to `mistral_generate`, whose text is the filling.
 *
 * `*count` is written also with `MISTRAL_E_BUFFER_TOO_SMALL`: the number of tokens that there are.
 *
 * Encoding: `prompt` and `suffix` are UTF-8.
 * NULL allowed: `tokens` if `capacity` is 0.
 * Threads: any, several at once.
 * Statuses: `MISTRAL_OK`, `MISTRAL_E_NULL`, `MISTRAL_E_ARGUMENT` (the chat format is v1), `MISTRAL_E_UTF8`,
 * `MISTRAL_E_HANDLE`, `MISTRAL_E_LIMIT`, `MISTRAL_E_UNSUPPORTED` (the model cannot, or has no tokenizer),
 * `MISTRAL_E_BUFFER_TOO_SMALL`, `MISTRAL_E_FORKED`, `MISTRAL_E_INTERNAL`.
 */
MISTRAL_API
mistral_status mistral_fim_encode(const struct mistral_model *MISTRAL_NONNULL model,
                                  const char *MISTRAL_NONNULL prompt,
                                  size_t prompt_len,
                                  const char *MISTRAL_NONNULL suffix,
                                  size_t suffix_len,
                                  uint32_t *MISTRAL_NULLABLE tokens,
                                  size_t capacity,
                                  size_t *MISTRAL_NONNULL count);

/**
 * Makes an empty session on a model, its cache included.
 *
 * `options` is a JSON object: `context` (positions; 4096, or fewer if the model was made for fewer, if not
 * given), `cache_type` (`"f16"`, the default, `"f32"`, or `"q8_0"`, about half of `f16`), and the bounds `max_prompt_tokens`,
 * `max_output_tokens` and `max_time_ms` of each call on the session, as for `mistral_model_open`: the tighter
 * of both holds; `audit` (as for `mistral_model_open`: a log of its own instead of the model's).
 *
 * Ownership: the caller frees `*out` with `mistral_session_free`; the session keeps the model alive.
 * Encoding: `options` is UTF-8.
 * NULL allowed: `options` if `options_len` is 0.
 * Threads: any, several at once.
 * Statuses: `MISTRAL_OK`, `MISTRAL_E_NULL`, `MISTRAL_E_ARGUMENT`, `MISTRAL_E_UTF8`, `MISTRAL_E_HANDLE`,
 * `MISTRAL_E_NO_MEMORY`, `MISTRAL_E_LIMIT`, `MISTRAL_E_UNSUPPORTED`, `MISTRAL_E_DEVICE`, `MISTRAL_E_AUDIT`, `MISTRAL_E_FORKED`,
 * `MISTRAL_E_INTERNAL`.
 */
MISTRAL_API
mistral_status mistral_session_new(const struct mistral_model *MISTRAL_NONNULL model,
                                   const char *MISTRAL_NULLABLE options,
                                   size_t options_len,
                                   struct mistral_session **MISTRAL_NONNULL out);

/**
 * Makes a second session with the same tokens and logits, which goes on by itself: neither sees what the other
 * does from here on. Both share the memory of the cache until one of them evaluates a token, which then copies
 * the positions in use; the whole cache counts against `max_memory` at once. The bounds of the session and the
 * random numbers of `mistral_sample` go with it.
 *
 * Ownership: the caller frees `*out` with `mistral_session_free`; the order of frees is free.
 * Threads: several at once, but not while another call changes the session.
 * Statuses: `MISTRAL_OK`, `MISTRAL_E_NULL`, `MISTRAL_E_HANDLE`, `MISTRAL_E_BUSY`, `MISTRAL_E_LIMIT`,
 * `MISTRAL_E_FORKED`, `MISTRAL_E_INTERNAL`.
 */
MISTRAL_API
mistral_status mistral_session_fork(const struct mistral_session *MISTRAL_NONNULL session,
                                    struct mistral_session **MISTRAL_NONNULL out);

/**
 * Forgets all tokens of a session; its memory stays allocated.
 *
 * Threads: one at a time for each session.
 * Statuses: `MISTRAL_OK`, `MISTRAL_E_NULL`, `MISTRAL_E_HANDLE`, `MISTRAL_E_BUSY`, `MISTRAL_E_FORKED`,
 * `MISTRAL_E_INTERNAL`.
 */
MISTRAL_API
mistral_status mistral_session_reset(struct mistral_session *MISTRAL_NONNULL session);

/**
 * Keeps the first `count` tokens of a session and forgets the others. It goes on as a session that was
 * prefilled with these tokens: the last of them is evaluated again by the next call that needs its logits.
 * Where a layer with a sliding window has overwritten what they need, that call evaluates all of them again.
 *
 * Threads: one at a time for each session.
 * Statuses: `MISTRAL_OK`, `MISTRAL_E_NULL`, `MISTRAL_E_ARGUMENT` (more tokens than there are),
 * `MISTRAL_E_HANDLE`, `MISTRAL_E_BUSY`, `MISTRAL_E_FORKED`, `MISTRAL_E_INTERNAL`.
 */
MISTRAL_API
mistral_status mistral_session_trim(struct mistral_session *MISTRAL_NONNULL session,
                                    size_t count);

/**
 * What a session holds and has done, as a JSON object: `tokens` (on its timeline), `evaluated` (those of them
 * that are in the cache; the others are evaluated by the next call), `context` (positions in all), `cache_type`,
 * `cache_bytes` (forks share them until one of them goes on), `locked_bytes` (those of them that are kept out of the
 * swap), and since the session was made: `prompt_tokens` and
 * `prompt_seconds` (evaluated several at a time), `decode_tokens` and `decode_seconds` (one at a time), by a
 * monotonic clock, with `prompt_tokens_per_second` and `decode_tokens_per_second`.
 *
 * Ownership: the caller frees `*out` with `mistral_buf_free`.
 * Encoding: UTF-8 JSON.
 * Threads: several at once, but not while another call changes the session.
 * Statuses: `MISTRAL_OK`, `MISTRAL_E_NULL`, `MISTRAL_E_HANDLE`, `MISTRAL_E_BUSY`, `MISTRAL_E_NO_MEMORY`,
 * `MISTRAL_E_LIMIT`, `MISTRAL_E_FORKED`, `MISTRAL_E_INTERNAL`.
 */
MISTRAL_API
mistral_status mistral_session_stats(const struct mistral_session *MISTRAL_NONNULL session,
                                     struct mistral_buf **MISTRAL_NONNULL out);

/**
 * Gives a session up. A call or a generation that is using it goes on; the memory goes when that ends.
 *
 * NULL allowed: `session`: nothing is done.
 * Threads: one at a time for each session.
 * Statuses: `MISTRAL_OK`, `MISTRAL_E_HANDLE`, `MISTRAL_E_FORKED`, `MISTRAL_E_INTERNAL`.
 */
MISTRAL_API
mistral_status mistral_session_free(struct mistral_session *MISTRAL_NULLABLE session);

/**
 * Writes a session into a buffer, for `mistral_session_load`: its tokens, and the keys and values of the
 * positions in use; not the logits, which the last token gives again, nor the random numbers of
 * `mistral_sample`.
 *
 * `options` is a JSON object: `key`, a secret of the host of at least 16 bytes, in hexadecimal digits or Base64.
 * With it, nobody without it can make or change a buffer that is loaded (HMAC-SHA-256). Without a key, damage
 * is found, and forgery is not. The buffer holds the conversation and is not encrypted.
 *
 * The bytes are bound to the SHA-256 of the model's files, which the first call on a model computes: it reads
 * them all, about a second for each gigabyte that the system has in memory, and as long as the disk takes
 * otherwise. `progress` is called on the calling thread meanwhile, with the phase `"digest"`. Later calls only
 * read the cache of the session.
 *
 * Ownership: the caller frees `*out` with `mistral_buf_free`.
 * Encoding: `options` is UTF-8; the buffer is binary.
 * NULL allowed: `options` if `options_len` is 0, `cancel`, `progress`, `user_data`.
 * Threads: several at once, but not while another call changes the session.
 * Statuses: `MISTRAL_OK`, `MISTRAL_E_NULL`, `MISTRAL_E_ARGUMENT`, `MISTRAL_E_UTF8`, `MISTRAL_E_HANDLE`,
 * `MISTRAL_E_BUSY`, `MISTRAL_E_NO_MEMORY`, `MISTRAL_E_LIMIT`, `MISTRAL_E_CANCELLED`, `MISTRAL_E_DEVICE`,
 * `MISTRAL_E_FORKED`, `MISTRAL_E_INTERNAL`.
 */
MISTRAL_API
mistral_status mistral_session_save(const struct mistral_session *MISTRAL_NONNULL session,
                                    const char *MISTRAL_NULLABLE options,
                                    size_t options_len,
                                    const struct mistral_cancel *MISTRAL_NULLABLE cancel,
                                    mistral_progress_fn progress,
                                    void *MISTRAL_NULLABLE user_data,
                                    struct mistral_buf **MISTRAL_NONNULL out);

/**
 * Makes a session from what `mistral_session_save` wrote, on the same model, opened on the same device with the
 * same `quantize` and `activation`. It goes on bit for bit as the one that was saved; the last token is evaluated
 * again by the next call that needs its logits.
 *
 * `options` is a JSON object: `key` (the one that it was saved with; none where it was saved with none),
 * `context` (as many positions as it had if not given), `cache_type` (refused where the saved one is another), and
 * the bounds of a session and `audit`, as for `mistral_session_new`.
 *
 * Nothing is believed or allocated before the bytes are known to be whole and this model's. The first call on a
 * model reads all its files, as `mistral_session_save` says.
 *
 * Ownership: the caller frees `*out` with `mistral_session_free`; the session keeps the model alive. `blob` stays
 * the caller's and is not used afterwards.
 * Encoding: `options` is UTF-8; `blob` is binary.
 * NULL allowed: `options` if `options_len` is 0, `cancel`, `progress`, `user_data`.
 * Threads: any, several at once.
 * Statuses: `MISTRAL_OK`, `MISTRAL_E_NULL`, `MISTRAL_E_ARGUMENT`, `MISTRAL_E_UTF8`, `MISTRAL_E_HANDLE`,
 * `MISTRAL_E_NO_MEMORY`, `MISTRAL_E_LIMIT`, `MISTRAL_E_FORMAT` (no saved session), `MISTRAL_E_INTEGRITY` (damaged, of
 * another key or of another model), `MISTRAL_E_UNSUPPORTED` (of another version, or type of cache),
 * `MISTRAL_E_CONTEXT_FULL` (`context` is too small), `MISTRAL_E_CANCELLED`, `MISTRAL_E_DEVICE`, `MISTRAL_E_AUDIT`,
 * `MISTRAL_E_FORKED`, `MISTRAL_E_INTERNAL`.
 */
MISTRAL_API
mistral_status mistral_session_load(const struct mistral_model *MISTRAL_NONNULL model,
                                    const void *MISTRAL_NONNULL blob,
                                    size_t blob_len,
                                    const char *MISTRAL_NULLABLE options,
                                    size_t options_len,
                                    const struct mistral_cancel *MISTRAL_NULLABLE cancel,
                                    mistral_progress_fn progress,
                                    void *MISTRAL_NULLABLE user_data,
                                    struct mistral_session **MISTRAL_NONNULL out);

/**
 * Appends tokens to a session and evaluates them; `mistral_logits` then has the logits of the last one. A
 * call that is cancelled keeps the tokens that were evaluated until then; one that fails otherwise appends
 * none.
 *
 * `progress` is called on the calling thread; a call on this session from it is refused with
 * `MISTRAL_E_BUSY`.
 *
 * NULL allowed: `cancel`, `progress`, `user_data`.
 * Threads: one at a time for each session.
 * Statuses: `MISTRAL_OK`, `MISTRAL_E_NULL`, `MISTRAL_E_ARGUMENT` (no token, or one outside the vocabulary),
 * `MISTRAL_E_HANDLE`, `MISTRAL_E_BUSY`, `MISTRAL_E_LIMIT`, `MISTRAL_E_FORMAT` (the weights are damaged),
 * `MISTRAL_E_CONTEXT_FULL`, `MISTRAL_E_CANCELLED`, `MISTRAL_E_DEVICE`, `MISTRAL_E_AUDIT`, `MISTRAL_E_FORKED`,
 * `MISTRAL_E_INTERNAL`.
 */
MISTRAL_API
mistral_status mistral_prefill(struct mistral_session *MISTRAL_NONNULL session,
                               const uint32_t *MISTRAL_NONNULL tokens,
                               size_t count,
                               const struct mistral_cancel *MISTRAL_NULLABLE cancel,
                               mistral_progress_fn progress,
                               void *MISTRAL_NULLABLE user_data);

/**
 * Copies out the logits after the last token of a session: one for each token of the model's vocabulary. Where
 * that token is not evaluated yet (one that was sampled, or the last one after `mistral_session_trim` or
 * `mistral_session_load`), this call evaluates it first; `mistral_sample` does so too, and can be cancelled.
 *
 * `*count` is written also with `MISTRAL_E_BUFFER_TOO_SMALL`: the number of logits that there are.
 *
 * NULL allowed: `logits` if `capacity` is 0.
 * Threads: several at once, but not while another call changes the session; one that has to evaluate changes it.
 * Statuses: `MISTRAL_OK`, `MISTRAL_E_NULL`, `MISTRAL_E_ARGUMENT` (there is no token), `MISTRAL_E_HANDLE`,
 * `MISTRAL_E_BUSY`, `MISTRAL_E_LIMIT`, `MISTRAL_E_FORMAT` (the weights are damaged), `MISTRAL_E_CONTEXT_FULL`
 * (no position is left for the last token), `MISTRAL_E_BUFFER_TOO_SMALL`, `MISTRAL_E_DEVICE`, `MISTRAL_E_AUDIT`,
 * `MISTRAL_E_FORKED`, `MISTRAL_E_INTERNAL`.
 */
MISTRAL_API
mistral_status mistral_logits(const struct mistral_session *MISTRAL_NONNULL session,
                              float *MISTRAL_NULLABLE logits,
                              size_t capacity,
                              size_t *MISTRAL_NONNULL count);

/**
 * Chooses the next token from the logits after the last one and appends it. It is evaluated by the next call
 * that needs it, so the last token of an answer costs nothing. The loop is
 * `mistral_prefill(prompt)`, then `mistral_sample` until the host has enough; `mistral_logits` may be called
 * in between, and `mistral_prefill` to go on with tokens of the host's own. End-of-sequence tokens
 * (`eos_token_ids` of `mistral_model_info`) are tokens like others here.
 *
 * `options` is a JSON object: `temperature` (0, the default, takes the most probable token), `top_k`, `top_p`,
 * `min_p`, `repetition_penalty`, `presence_penalty`, `frequency_penalty`, `penalty_window`, `logit_bias`, `seed`,
 * all as for `mistral_generate`. The same seed gives the tokens that `mistral_generate` gives: the random numbers
 * go on from call to call while the options stay the same, and begin anew, from the seed, with other options, and
 * after the session was trimmed, reset or used by `mistral_session_chat`.
 *
 * `*logprob` is the natural logarithm of the token's probability in the model's own distribution.
 *
 * Encoding: `options` is UTF-8.
 * NULL allowed: `options` if `options_len` is 0, `cancel`, `logprob`.
 * Threads: one at a time for each session.
 * Statuses: `MISTRAL_OK`, `MISTRAL_E_NULL`, `MISTRAL_E_ARGUMENT` (the options, or a session without a token),
 * `MISTRAL_E_UTF8`, `MISTRAL_E_HANDLE`, `MISTRAL_E_BUSY`, `MISTRAL_E_LIMIT`, `MISTRAL_E_FORMAT` (the weights are
 * damaged), `MISTRAL_E_CONTEXT_FULL`, `MISTRAL_E_CANCELLED`, `MISTRAL_E_DEVICE`, `MISTRAL_E_AUDIT`, `MISTRAL_E_FORKED`,
 * `MISTRAL_E_INTERNAL`.
 */
MISTRAL_API
mistral_status mistral_sample(struct mistral_session *MISTRAL_NONNULL session,
                              const char *MISTRAL_NULLABLE options,
                              size_t options_len,
                              const struct mistral_cancel *MISTRAL_NULLABLE cancel,
                              uint32_t *MISTRAL_NONNULL token,
                              float *MISTRAL_NULLABLE logprob);

/**
 * Appends tokens to a session and generates what follows, event by event, until it is finished.
 *
 * `options` is a JSON object: `max_tokens`, `temperature` (0, the default, takes the most probable token),
 * `top_k`, `top_p`, `min_p`, `repetition_penalty`, `presence_penalty`, `frequency_penalty`,
 * `penalty_window`, `logit_bias` (`{"token": number}`), `seed`, `stop` (a text or a list of texts),
 * `stop_tokens`, `ignore_eos`, `prompt_lookup` (0 to 32, default 0: so many tokens are guessed at a time from the text so far
 * and evaluated together; the answer is the same, sooner where it repeats what stands before it), `logprobs` (how many
 * alternatives to report; `true` is 0), `show_special` (the names of control tokens are part of the text), `caller_ref` (what the audit log says for whom it runs; at
 * most 256 bytes); and at most one of `json_object` (`true`: the answer is a
 * JSON object), `json_schema` (a JSON Schema that the answer is valid under), `regex` (a regular expression that
 * matches the whole answer) and `grammar` (a context-free grammar in Lark's syntax). The answer ends once nothing
 * can follow under it; one that ends by `max_tokens`, a stop text or a full context is the beginning of an answer
 * that obeys. What cannot be enforced is refused before anything is evaluated, with the reason:
 * `MISTRAL_E_UNSUPPORTED` for a keyword, `MISTRAL_E_ARGUMENT` for what is wrong or satisfied by nothing,
 * `MISTRAL_E_LIMIT` for what is too large, or takes too much work on the way.
 *
 * `callback` is called on the calling thread; a call on this session from it is refused with
 * `MISTRAL_E_BUSY`. Non-zero from it ends the call with `MISTRAL_E_CANCELLED`; the session keeps what was
 * generated. Without tokens, generation goes on from what the session holds.
 *
 * Encoding: `options` is UTF-8.
 * NULL allowed: `tokens` if `count` is 0, `options` if `options_len` is 0, `cancel`, `user_data`.
 * Threads: one at a time for each session.
 * Statuses: `MISTRAL_OK`, `MISTRAL_E_NULL`, `MISTRAL_E_ARGUMENT`, `MISTRAL_E_UTF8`, `MISTRAL_E_HANDLE`,
 * `MISTRAL_E_BUSY`, `MISTRAL_E_LIMIT`, `MISTRAL_E_FORMAT` (the weights are damaged), `MISTRAL_E_UNSUPPORTED`,
 * `MISTRAL_E_CONTEXT_FULL`, `MISTRAL_E_CANCELLED`, `MISTRAL_E_DEVICE`, `MISTRAL_E_AUDIT`, `MISTRAL_E_FORKED`,
 * `MISTRAL_E_INTERNAL`.
 */
MISTRAL_API
mistral_status mistral_generate(struct mistral_session *MISTRAL_NONNULL session,
                                const uint32_t *MISTRAL_NULLABLE tokens,
                                size_t count,
                                const char *MISTRAL_NULLABLE options,
                                size_t options_len,
                                const struct mistral_cancel *MISTRAL_NULLABLE cancel,
                                mistral_event_fn callback,
                                void *MISTRAL_NULLABLE user_data);

/**
 * Appends tokens to a session, evaluates them, and starts a generation whose events
 * `mistral_generation_next` gives one at a time: for hosts that would rather ask than be called. Options as
 * for `mistral_generate`. Until the generation is freed, other calls on the session are refused with
 * `MISTRAL_E_BUSY`.
 *
 * `cancel` is followed by the whole generation, `progress` is called on the calling thread during this call.
 *
 * Ownership: the caller frees `*out` with `mistral_generation_free`; it keeps the session alive.
 * Encoding: `options` is UTF-8.
 * NULL allowed: `tokens` if `count` is 0, `options` if `options_len` is 0, `cancel`, `progress`,
 * `user_data`.
 * Threads: one at a time for each session.
 * Statuses: `MISTRAL_OK`, `MISTRAL_E_NULL`, `MISTRAL_E_ARGUMENT`, `MISTRAL_E_UTF8`, `MISTRAL_E_HANDLE`,
 * `MISTRAL_E_BUSY`, `MISTRAL_E_LIMIT`, `MISTRAL_E_FORMAT` (the weights are damaged), `MISTRAL_E_UNSUPPORTED`,
 * `MISTRAL_E_CONTEXT_FULL`, `MISTRAL_E_CANCELLED`, `MISTRAL_E_DEVICE`, `MISTRAL_E_AUDIT`, `MISTRAL_E_FORKED`,
 * `MISTRAL_E_INTERNAL`.
 */
MISTRAL_API
mistral_status mistral_generation_new(struct mistral_session *MISTRAL_NONNULL session,
                                      const uint32_t *MISTRAL_NULLABLE tokens,
                                      size_t count,
                                      const char *MISTRAL_NULLABLE options,
                                      size_t options_len,
                                      const struct mistral_cancel *MISTRAL_NULLABLE cancel,
                                      mistral_progress_fn progress,
                                      void *MISTRAL_NULLABLE user_data,
                                      struct mistral_generation **MISTRAL_NONNULL out);

/**
 * Gives the next event of a generation: one token, sampled and evaluated. The last event says so in
 * `finish_reason`; after it, and after an error, there is none: `MISTRAL_E_ARGUMENT`.
 *
 * Ownership: `*event` and what it points to are the generation's; they live until the next call with it.
 * Threads: one at a time for each generation.
 * Statuses: `MISTRAL_OK`, `MISTRAL_E_NULL`, `MISTRAL_E_ARGUMENT` (the generation has ended, or its constraint
 * lets no token follow), `MISTRAL_E_HANDLE`, `MISTRAL_E_BUSY`, `MISTRAL_E_LIMIT` (`max_time_ms` of one call, or
 * the work of a constraint), `MISTRAL_E_FORMAT` (the weights are damaged), `MISTRAL_E_CANCELLED`,
 * `MISTRAL_E_DEVICE`, `MISTRAL_E_AUDIT`, `MISTRAL_E_FORKED`, `MISTRAL_E_INTERNAL`.
 */
MISTRAL_API
mistral_status mistral_generation_next(struct mistral_generation *MISTRAL_NONNULL generation,
                                       const struct mistral_event **MISTRAL_NONNULL event);

/**
 * Ends a generation, finished or not, and gives its session back. The session keeps what was generated.
 *
 * NULL allowed: `generation`: nothing is done.
 * Threads: one at a time for each generation.
 * Statuses: `MISTRAL_OK`, `MISTRAL_E_HANDLE`, `MISTRAL_E_FORKED`, `MISTRAL_E_INTERNAL`.
 */
MISTRAL_API
mistral_status mistral_generation_free(struct mistral_generation *MISTRAL_NULLABLE generation);

/**
 * Answers a chat-completions request: the JSON body that Mistral's and OpenAI's APIs take, `messages` and
 * the rest. If it says `"stream": true`, `callback` is given each chunk object (without the `data:` of an
 * HTTP stream) on the calling thread; `*response` is the whole response either way.
 *
 * With `"sidecar": true` each choice of the response has a `sidecar`: a JSON object to keep beside the answer, which
 * says that it was generated (`ai_generated`), when, by which model (`model.sha256`, which the first such call
 * computes: it reads all files of the model), and of which text it says so (`output.sha256`, of
 * `message.content`).
 *
 * If the last message is the assistant's and says `"prefix": true`, the answer goes on from it and begins with it, in
 * the response and in the chunks. `"local_time"` of a request is as the option of `mistral_chat_encode`: the library
 * does not look at a clock for it.
 *
 * Non-zero from `callback` ends the call with `MISTRAL_E_CANCELLED`, at the last chunk as well.
 *
 * Ownership: the caller frees `*response` with `mistral_buf_free`.
 * Encoding: `request`, the chunks and the response are UTF-8 JSON.
 * NULL allowed: `cancel`, `callback` if the request does not ask for a stream, `user_data`.
 * Threads: any, several at once.
 * Statuses: `MISTRAL_OK`, `MISTRAL_E_NULL`, `MISTRAL_E_ARGUMENT`, `MISTRAL_E_UTF8`, `MISTRAL_E_HANDLE`,
 * `MISTRAL_E_NO_MEMORY`, `MISTRAL_E_LIMIT`, `MISTRAL_E_FORMAT` (the weights are damaged),
 * `MISTRAL_E_UNSUPPORTED`, `MISTRAL_E_CONTEXT_FULL`, `MISTRAL_E_CANCELLED`, `MISTRAL_E_DEVICE`, `MISTRAL_E_AUDIT`,
 * `MISTRAL_E_FORKED`, `MISTRAL_E_INTERNAL`.
 */
MISTRAL_API
mistral_status mistral_chat(const struct mistral_model *MISTRAL_NONNULL model,
                            const char *MISTRAL_NONNULL request,
                            size_t request_len,
                            const struct mistral_cancel *MISTRAL_NULLABLE cancel,
                            mistral_chunk_fn callback,
                            void *MISTRAL_NULLABLE user_data,
                            struct mistral_buf **MISTRAL_NONNULL response);

/**
 * Answers a chat-completions request on a session: what the conversation shares with the session's timeline,
 * such as its earlier turns, is not evaluated again, and the rest of the timeline is forgotten. The
 * response says in `usage.prompt_tokens_details.cached_tokens` how many tokens that saved. Send the whole
 * conversation each time. Everything else is as for `mistral_chat`.
 *
 * The context is that of the session: a conversation that does not fit is refused with
 * `MISTRAL_E_CONTEXT_FULL`, and leaves the session as it was; an answer ends where the context does. A call on
 * this session from `callback` is refused with `MISTRAL_E_BUSY`.
 *
 * Ownership: the caller frees `*response` with `mistral_buf_free`.
 * Encoding: `request`, the chunks and the response are UTF-8 JSON.
 * NULL allowed: `cancel`, `callback` if the request does not ask for a stream, `user_data`.
 * Threads: one at a time for each session.
 * Statuses: `MISTRAL_OK`, `MISTRAL_E_NULL`, `MISTRAL_E_ARGUMENT`, `MISTRAL_E_UTF8`, `MISTRAL_E_HANDLE`,
 * `MISTRAL_E_BUSY`, `MISTRAL_E_NO_MEMORY`, `MISTRAL_E_LIMIT`, `MISTRAL_E_FORMAT` (the weights are damaged),
 * `MISTRAL_E_UNSUPPORTED`, `MISTRAL_E_CONTEXT_FULL`, `MISTRAL_E_CANCELLED`, `MISTRAL_E_DEVICE`, `MISTRAL_E_AUDIT`,
 * `MISTRAL_E_FORKED`, `MISTRAL_E_INTERNAL`.
 */
MISTRAL_API
mistral_status mistral_session_chat(struct mistral_session *MISTRAL_NONNULL session,
                                    const char *MISTRAL_NONNULL request,
                                    size_t request_len,
                                    const struct mistral_cancel *MISTRAL_NULLABLE cancel,
                                    mistral_chunk_fn callback,
                                    void *MISTRAL_NULLABLE user_data,
                                    struct mistral_buf **MISTRAL_NONNULL response);

/**
 * Turns a chat-completions request into the tokens that the model reads for it. Of the request, `messages`,
 * `tools`, `response_format`, `reasoning_effort` and `local_time` change them; the other fields are checked.
 *
 * `options` is a JSON object: `mode` (`"test"`, the default; `"serving"`, `"finetuning"`, `"agnostic"`: the
 * rules of how a conversation may end, by their names in mistral-common), `local_time` (seconds since 1970
 * in local time, for the templates that write the date; it goes before the field `local_time` of the request).
 *
 * `*count` is written also with `MISTRAL_E_BUFFER_TOO_SMALL`: the number of tokens that there are.
 *
 * Encoding: `request` and `options` are UTF-8 JSON.
 * NULL allowed: `options` if `options_len` is 0, `tokens` if `capacity` is 0.
 * Threads: any, several at once.
 * Statuses: `MISTRAL_OK`, `MISTRAL_E_NULL`, `MISTRAL_E_ARGUMENT` (also a conversation that breaks a rule of
 * the chat format), `MISTRAL_E_UTF8`, `MISTRAL_E_HANDLE`, `MISTRAL_E_LIMIT`, `MISTRAL_E_UNSUPPORTED` (the
 * model has no tokenizer or chat format, or a field cannot be honoured), `MISTRAL_E_BUFFER_TOO_SMALL`,
 * `MISTRAL_E_FORKED`, `MISTRAL_E_INTERNAL`.
 */
MISTRAL_API
mistral_status mistral_chat_encode(const struct mistral_model *MISTRAL_NONNULL model,
                                   const char *MISTRAL_NONNULL request,
                                   size_t request_len,
                                   const char *MISTRAL_NULLABLE options,
                                   size_t options_len,
                                   uint32_t *MISTRAL_NULLABLE tokens,
                                   size_t capacity,
                                   size_t *MISTRAL_NONNULL count);

/**
 * Turns a chat-completions request into the text that the model reads for it, control tokens by their
 * names, as mistral-common shows it: of a SentencePiece vocabulary the pieces, with U+2581 for a space. It is
 * for people: the tokens of this text may be others than those of `mistral_chat_encode`. Options as for that
 * function.
 *
 * Ownership: the caller frees `*out` with `mistral_buf_free`.
 * Encoding: `request` and `options` are UTF-8 JSON, the text is UTF-8.
 * NULL allowed: `options` if `options_len` is 0.
 * Threads: any, several at once.
 * Statuses: `MISTRAL_OK`, `MISTRAL_E_NULL`, `MISTRAL_E_ARGUMENT` (also a conversation that breaks a rule of
 * the chat format), `MISTRAL_E_UTF8`, `MISTRAL_E_HANDLE`, `MISTRAL_E_NO_MEMORY`, `MISTRAL_E_LIMIT`,
 * `MISTRAL_E_UNSUPPORTED` (as for `mistral_chat_encode`), `MISTRAL_E_FORKED`, `MISTRAL_E_INTERNAL`.
 */
MISTRAL_API
mistral_status mistral_chat_render(const struct mistral_model *MISTRAL_NONNULL model,
                                   const char *MISTRAL_NONNULL request,
                                   size_t request_len,
                                   const char *MISTRAL_NULLABLE options,
                                   size_t options_len,
                                   struct mistral_buf **MISTRAL_NONNULL out);

/**
 * Reads what a model has written back as a message of the assistant: `content`, `reasoning_content`,
 * `tool_calls`, and `broken_tool_calls` for those that are cut off or malformed. What was written is either
 * `text`, control tokens by their names, or `tokens`; the other is NULL.
 *
 * `options` is a JSON object: `tokenizer_version` (`"v7"` ...: Mistral's format in which it is read, if not
 * the model's own).
 *
 * Ownership: the caller frees `*out` with `mistral_buf_free`.
 * Encoding: `text` is UTF-8, `options` and the message are UTF-8 JSON.
 * NULL allowed: `text` if `text_len` is 0, `tokens` if `count` is 0, `options` if `options_len` is 0.
 * Threads: any, several at once.
 * Statuses: `MISTRAL_OK`, `MISTRAL_E_NULL`, `MISTRAL_E_ARGUMENT` (a token that does not exist, text and
 * tokens together, or the options), `MISTRAL_E_UTF8`, `MISTRAL_E_HANDLE`, `MISTRAL_E_NO_MEMORY`,
 * `MISTRAL_E_LIMIT`, `MISTRAL_E_UNSUPPORTED` (the model has no tokenizer), `MISTRAL_E_FORKED`,
 * `MISTRAL_E_INTERNAL`.
 */
MISTRAL_API
mistral_status mistral_chat_parse(const struct mistral_model *MISTRAL_NONNULL model,
                                  const char *MISTRAL_NULLABLE text,
                                  size_t text_len,
                                  const uint32_t *MISTRAL_NULLABLE tokens,
                                  size_t count,
                                  const char *MISTRAL_NULLABLE options,
                                  size_t options_len,
                                  struct mistral_buf **MISTRAL_NONNULL out);

/**
 * Turns tokens into one vector of `dim` numbers (see `mistral_model_info`): the hidden states of the tokens after the
 * model's last norm, pooled. A text becomes tokens by `mistral_encode`, most often with its option `bos`.
 *
 * `options` is a JSON object: `pooling` (`"mean"`, the default, of all tokens, or `"last"`: that of the last
 * token), `normalize` (`true`, the default, scales the vector to a length of 1). Mistral's generative models were
 * not trained to embed: expect rough similarities of them. There may be as many tokens as the model was made
 * for, and memory for their cache is needed during the call.
 *
 * `*count` is written also with `MISTRAL_E_BUFFER_TOO_SMALL`, which is found before anything is evaluated: the
 * number of floats that there are.
 *
 * Encoding: `options` is UTF-8.
 * NULL allowed: `options` if `options_len` is 0, `cancel`, `embedding` if `capacity` is 0.
 * Threads: any, several at once.
 * Statuses: `MISTRAL_OK`, `MISTRAL_E_NULL`, `MISTRAL_E_ARGUMENT` (the options, no token, or one outside the
 * vocabulary), `MISTRAL_E_UTF8`, `MISTRAL_E_HANDLE`, `MISTRAL_E_LIMIT`, `MISTRAL_E_FORMAT` (the weights are damaged),
 * `MISTRAL_E_UNSUPPORTED` (no weights), `MISTRAL_E_CANCELLED`, `MISTRAL_E_BUFFER_TOO_SMALL`, `MISTRAL_E_DEVICE`, `MISTRAL_E_AUDIT`,
 * `MISTRAL_E_FORKED`, `MISTRAL_E_INTERNAL`.
 */
MISTRAL_API
mistral_status mistral_embed(const struct mistral_model *MISTRAL_NONNULL model,
                             const uint32_t *MISTRAL_NONNULL tokens,
                             size_t token_count,
                             const char *MISTRAL_NULLABLE options,
                             size_t options_len,
                             const struct mistral_cancel *MISTRAL_NULLABLE cancel,
                             float *MISTRAL_NULLABLE embedding,
                             size_t capacity,
                             size_t *MISTRAL_NONNULL count);

/**
 * Verifies the files of the model at `path`, a folder or a file, against a manifest of their SHA-256 or a
 * signature of OpenSSF Model Signing, offline; `*out` then says what was verified. The same object as the
 * option `verify` of `mistral_model_open` makes it a condition of opening.
 *
 * `options` is a JSON object: `manifest` (a path; `{"files": [{"name", "sha256", "bytes"}]}`, or what
 * `sha256sum` writes), `signature` (a path; a Sigstore bundle, version 0.3, made with a bare key), `keys` (a
 * list of public keys as PEM, ECDSA on P-256, P-384 or P-521, one of which must have made the signature),
 * `ignore` (names of files and folders that may lie in the folder although nothing vouches for them). Manifest
 * or signature must be given; what a signature says itself to ignore is not ignored.
 *
 * Every file is read once; `progress` is called on the calling thread, with the phase `"verify"`.
 *
 * Ownership: the caller frees `*out` with `mistral_buf_free`.
 * Encoding: `path` and `options` are UTF-8, the report is UTF-8 JSON.
 * NULL allowed: `cancel`, `progress`, `user_data`.
 * Threads: any.
 * Statuses: `MISTRAL_OK`, `MISTRAL_E_NULL`, `MISTRAL_E_ARGUMENT`, `MISTRAL_E_UTF8`, `MISTRAL_E_HANDLE`,
 * `MISTRAL_E_NO_MEMORY`, `MISTRAL_E_LIMIT`, `MISTRAL_E_IO`, `MISTRAL_E_FORMAT` (no manifest or bundle, or
 * names in it that lead out of the folder), `MISTRAL_E_INTEGRITY` (a file is missing, unexpected, a link or
 * another), `MISTRAL_E_SIGNATURE` (of another key, or of something else), `MISTRAL_E_UNSUPPORTED`,
 * `MISTRAL_E_CANCELLED`, `MISTRAL_E_FORKED`, `MISTRAL_E_INTERNAL`.
 */
MISTRAL_API
mistral_status mistral_verify(const char *MISTRAL_NONNULL path,
                              size_t path_len,
                              const char *MISTRAL_NONNULL options,
                              size_t options_len,
                              const struct mistral_cancel *MISTRAL_NULLABLE cancel,
                              mistral_progress_fn progress,
                              void *MISTRAL_NULLABLE user_data,
                              struct mistral_buf **MISTRAL_NONNULL out);

/**
 * Verifies the audit log at `path`, with the files that were rotated away from it; `*out` then says how many
 * records it has and what the last one is. A log is written by models and sessions with the option `audit`.
 *
 * Each record has the hash of the one before it, so a record that was changed, removed or moved is found. That
 * records were cut off at the end, or the chain computed anew, is found against a checkpoint: `checkpoint` of
 * an earlier report, of `mistral_model_info`, or of the file that the option `audit` names.
 *
 * `options` is a JSON object: `checkpoints` (a list of objects `{"seq", "hash", "mac"}`; one may be the record
 * before the oldest that was kept), `checkpoint_key` (hexadecimal digits or Base64: the key that
 * must have signed them; not without `checkpoints`), `allow_incomplete` (`true`: the log may end in the beginning
 * of a record, as a crash leaves it).
 *
 * `progress` is called on the calling thread, with the phase `"audit"`.
 *
 * Ownership: the caller frees `*out` with `mistral_buf_free`.
 * Encoding: `path` and `options` are UTF-8, the report is UTF-8 JSON.
 * NULL allowed: `options` if `options_len` is 0, `cancel`, `progress`, `user_data`.
 * Threads: any.
 * Statuses: `MISTRAL_OK`, `MISTRAL_E_NULL`, `MISTRAL_E_ARGUMENT`, `MISTRAL_E_UTF8`, `MISTRAL_E_HANDLE`,
 * `MISTRAL_E_NO_MEMORY`, `MISTRAL_E_LIMIT`, `MISTRAL_E_IO` (also for what is no regular file),
 * `MISTRAL_E_INTEGRITY` (the log is damaged), `MISTRAL_E_SIGNATURE` (a checkpoint that the key has not signed),
 * `MISTRAL_E_CANCELLED`, `MISTRAL_E_FORKED`, `MISTRAL_E_INTERNAL`.
 */
MISTRAL_API
mistral_status mistral_audit_verify(const char *MISTRAL_NONNULL path,
                                    size_t path_len,
                                    const char *MISTRAL_NULLABLE options,
                                    size_t options_len,
                                    const struct mistral_cancel *MISTRAL_NULLABLE cancel,
                                    mistral_progress_fn progress,
                                    void *MISTRAL_NULLABLE user_data,
                                    struct mistral_buf **MISTRAL_NONNULL out);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* MISTRAL_H */
