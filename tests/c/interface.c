/*
 * What the functions of mistral.h do, called from C on a tiny model and on a tokenizer of v3: interface MODEL EMPTY_FOLDER TOKENIZER.
 * Prints nothing unless it fails.
 */
#define _POSIX_C_SOURCE 200809L
#include "mistral.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define VOCAB_SIZE 260
#define CONTEXT "{\"context\": 128}"

#define CHECK(condition)                                                              \
  do {                                                                                \
    if (!(condition)) {                                                               \
      char message_[512];                                                             \
      mistral_last_error(message_, sizeof message_);                                  \
      fprintf(stderr, "%s:%d: %s\n  last error: %s\n", __FILE__, __LINE__, #condition, message_); \
      exit(1);                                                                        \
    }                                                                                 \
  } while (0)
#define OK(call) CHECK((call) == MISTRAL_OK)

static const char *model_path;

static mistral_status open_with(const char *path, const char *options, mistral_model **out) {
  return mistral_model_open(path, strlen(path), options, options ? strlen(options) : 0, NULL, NULL, NULL, out);
}

static mistral_model *open_model(void) {
  mistral_model *model = NULL;
  OK(open_with(model_path, NULL, &model));
  return model;
}

static mistral_session *new_session(const mistral_model *model, const char *options) {
  mistral_session *session = NULL;
  OK(mistral_session_new(model, options, strlen(options), &session));
  return session;
}

static int last_error_has(const char *part) {
  char message[1024];
  mistral_last_error(message, sizeof message);
  return strstr(message, part) != NULL;
}

static void library(void) {
  mistral_buf *buf = NULL;
  char version[32];
  snprintf(version, sizeof version, "%d.%d.%d", MISTRAL_VERSION_MAJOR, MISTRAL_VERSION_MINOR, MISTRAL_VERSION_PATCH);
  CHECK(strcmp(mistral_version(), version) == 0);
  CHECK(strcmp(mistral_status_name(MISTRAL_E_CONTEXT_FULL), "MISTRAL_E_CONTEXT_FULL") == 0);
  CHECK(strcmp(mistral_status_name(12345), "MISTRAL_E_?") == 0);
  CHECK(strlen(mistral_status_description(MISTRAL_E_FORKED)) > 10 && mistral_status_description(-1) != NULL);
  OK(mistral_build_info(&buf));
  CHECK(strstr(mistral_buf_data(buf), "\"version\":\"") != NULL && mistral_buf_len(buf) == strlen(mistral_buf_data(buf)));
  OK(mistral_buf_free(buf));
  CHECK(mistral_buf_data(buf) == NULL && mistral_buf_len(buf) == 0 && mistral_buf_data(NULL) == NULL);
  OK(mistral_devices(&buf));
  CHECK(strstr(mistral_buf_data(buf), "\"name\":\"cpu\"") != NULL);
  OK(mistral_buf_free(buf));
}

static void *errors_of_a_thread(void *unused) {
  char message[8];
  (void)unused;
  CHECK(mistral_last_error(message, sizeof message) == 0 && message[0] == 0);
  return NULL;
}

static void last_error(void) {
  mistral_model *model = NULL;
  mistral_buf *json = NULL;
  char message[256], cut[8];
  size_t len;
  pthread_t thread;

  CHECK(open_with("/nowhere/gr\303\274n", NULL, &model) == MISTRAL_E_IO && model == NULL);
  len = mistral_last_error(message, sizeof message);
  CHECK(len == strlen(message) && strstr(message, "/nowhere/gr\303\274n") != NULL);
  CHECK(mistral_last_error(NULL, 0) == len && mistral_last_error(cut, sizeof cut) == len);
  CHECK(strlen(cut) == 7 && strncmp(cut, message, 7) == 0);
  OK(mistral_last_error_json(&json));
  CHECK(strstr(mistral_buf_data(json), "\"name\":\"MISTRAL_E_IO\"") != NULL);
  CHECK(strstr(mistral_buf_data(json), "\"os_error\":2") != NULL);
  OK(mistral_buf_free(json));
  /* A cut in the middle of a character leaves the character out. */
  CHECK(strstr(message, "\303\274") != NULL);
  {
    size_t at = (size_t)(strstr(message, "\303\274") - message);
    char *half = malloc(at + 2);
    CHECK(mistral_last_error(half, at + 2) == len && strlen(half) == at);
    free(half);
  }
  /* Each thread has its own. */
  CHECK(pthread_create(&thread, NULL, errors_of_a_thread, NULL) == 0 && pthread_join(thread, NULL) == 0);
}

/* Whether the library was built with the device wgpu. */
static int has_wgpu(void) {
  mistral_buf *buf = NULL;
  int has;
  OK(mistral_build_info(&buf));
  has = strstr(mistral_buf_data(buf), "\"wgpu\"") != NULL;
  OK(mistral_buf_free(buf));
  return has;
}

static void opening(const char *empty_folder) {
  mistral_model *model = NULL;
  mistral_status no_adapter = has_wgpu() ? MISTRAL_E_DEVICE : MISTRAL_E_UNSUPPORTED;
  struct { const char *options; mistral_status status; const char *part; } cases[] = {
      {"{\"devise\": 1}", MISTRAL_E_ARGUMENT, "devise"},
      {"{\"device\": 1}", MISTRAL_E_ARGUMENT, "device"},
      {"{\"device\": \"wgpu:7\"}", no_adapter, "wgpu:7"},
      {"{\"threads\": 0}", MISTRAL_E_ARGUMENT, "threads"},
      {"{\"threads\": 100000}", MISTRAL_E_ARGUMENT, "threads"},
      {"{\"quantize\": \"q3\"}", MISTRAL_E_ARGUMENT, "q8_0"},
      {"{\"activation\": \"f64\"}", MISTRAL_E_ARGUMENT, "activation"},
      {"{\"max_memory\": 100}", MISTRAL_E_LIMIT, "max_memory"},
      {"{\"max_memory\": -1}", MISTRAL_E_ARGUMENT, "max_memory"},
      {"{", MISTRAL_E_ARGUMENT, "options"},
      {"7", MISTRAL_E_ARGUMENT, "options"},
      {"\377", MISTRAL_E_UTF8, "options"},
  };
  size_t i;
  for (i = 0; i < sizeof cases / sizeof *cases; i++) {
    CHECK(open_with(model_path, cases[i].options, &model) == cases[i].status);
    CHECK(last_error_has(cases[i].part));
  }
  CHECK(open_with("\377", NULL, &model) == MISTRAL_E_UTF8);
  CHECK(open_with("", NULL, &model) != MISTRAL_OK);
  CHECK(mistral_model_open("a\0b", 3, NULL, 0, NULL, NULL, NULL, &model) == MISTRAL_E_IO);
  CHECK(open_with(empty_folder, NULL, &model) != MISTRAL_OK && last_error_has(empty_folder));
  CHECK(model == NULL);
  OK(open_with(model_path, "{\"device\": \"cpu\", \"threads\": 2, \"activation\": \"f32\", \"quantize\": null}", &model));
  OK(mistral_model_free(model));
}

typedef struct { int calls, stop_at; uint64_t last, total; const char *phase; } progress_state;

static int32_t on_progress(void *user_data, const mistral_progress *progress) {
  progress_state *state = user_data;
  CHECK(progress->struct_size == sizeof *progress && progress->done >= state->last);
  CHECK(progress->done <= progress->total && strcmp(progress->phase, state->phase) == 0);
  state->last = progress->done;
  state->total = progress->total;
  return ++state->calls == state->stop_at;
}

static void progress_and_cancel(void) {
  progress_state state = {0, 0, 0, 0, "load"}, stops = {0, 2, 0, 0, "load"};
  mistral_cancel *cancel = NULL;
  mistral_model *model = NULL;
  size_t len = strlen(model_path);
  OK(mistral_cancel_new(&cancel));
  OK(mistral_model_open(model_path, len, NULL, 0, cancel, on_progress, &state, &model));
  OK(mistral_model_free(model));
  CHECK(state.calls > 3 && state.total > 0);
  model = NULL;
  CHECK(mistral_model_open(model_path, len, NULL, 0, cancel, on_progress, &stops, &model) == MISTRAL_E_CANCELLED);
  CHECK(stops.calls == 2 && model == NULL);
  /* What a callback returned did not trigger the host's object. */
  OK(mistral_model_open(model_path, len, NULL, 0, cancel, NULL, NULL, &model));
  OK(mistral_model_free(model));
  OK(mistral_cancel_trigger(cancel));
  CHECK(mistral_model_open(model_path, len, NULL, 0, cancel, NULL, NULL, &model) == MISTRAL_E_CANCELLED);
  OK(mistral_cancel_reset(cancel));
  OK(mistral_model_open(model_path, len, NULL, 0, cancel, NULL, NULL, &model));
  OK(mistral_model_free(model));
  OK(mistral_cancel_free(cancel));
  CHECK(mistral_cancel_trigger(cancel) == MISTRAL_E_HANDLE && mistral_cancel_free(cancel) == MISTRAL_E_HANDLE);
}

static void text(void) {
  mistral_model *model = open_model();
  mistral_buf *buf = NULL;
  uint32_t tokens[8], outside = VOCAB_SIZE;
  size_t count = 0;
  const char *special = "{\"special\": true}", *bos = "{\"bos\": true}";
  OK(mistral_encode(model, "hello", 5, NULL, 0, tokens, 8, &count));
  CHECK(count == 3 && tokens[0] == 256 && tokens[1] == 257);
  OK(mistral_decode(model, tokens, count, NULL, 0, &buf));
  CHECK(mistral_buf_len(buf) == 5 && strcmp(mistral_buf_data(buf), "hello") == 0);
  OK(mistral_buf_free(buf));
  count = 0;
  CHECK(mistral_encode(model, "hello", 5, NULL, 0, tokens, 2, &count) == MISTRAL_E_BUFFER_TOO_SMALL && count == 3);
  CHECK(mistral_encode(model, "hello", 5, NULL, 0, NULL, 0, &count) == MISTRAL_E_BUFFER_TOO_SMALL && count == 3);
  OK(mistral_encode(model, "", 0, NULL, 0, NULL, 0, &count));
  CHECK(count == 0);
  OK(mistral_encode(model, "</s>", 4, special, strlen(special), tokens, 8, &count));
  CHECK(count == 1 && tokens[0] == 259);
  OK(mistral_encode(model, "</s>", 4, bos, strlen(bos), tokens, 8, &count));
  CHECK(count == 5 && tokens[0] == 258);
  CHECK(mistral_encode(model, "\377", 1, NULL, 0, tokens, 8, &count) == MISTRAL_E_UTF8 && last_error_has("text"));
  CHECK(mistral_encode(model, "x", (size_t)-1, NULL, 0, tokens, 8, &count) == MISTRAL_E_ARGUMENT);
  CHECK(mistral_decode(model, &outside, 1, NULL, 0, &buf) == MISTRAL_E_ARGUMENT);
  tokens[0] = 259;
  OK(mistral_decode(model, tokens, 1, special, strlen(special), &buf));
  CHECK(strcmp(mistral_buf_data(buf), "</s>") == 0);
  OK(mistral_buf_free(buf));
  OK(mistral_decode(model, NULL, 0, NULL, 0, &buf));
  CHECK(mistral_buf_len(buf) == 0 && *mistral_buf_data(buf) == 0);
  OK(mistral_buf_free(buf));
  OK(mistral_model_info(model, &buf));
  CHECK(mistral_buf_data(buf)[0] == '{' && strstr(mistral_buf_data(buf), "\"vocab_size\":260") != NULL);
  OK(mistral_buf_free(buf));
  OK(mistral_model_free(model));
}

static uint32_t largest(const float *logits) {
  uint32_t best = 0, i;
  for (i = 1; i < VOCAB_SIZE; i++) best = logits[i] > logits[best] ? i : best;
  return best;
}

static void steps(void) {
  mistral_model *model = open_model();
  mistral_session *session = new_session(model, CONTEXT), *other = NULL;
  mistral_buf *buf = NULL;
  float whole[VOCAB_SIZE], parts[VOCAB_SIZE];
  uint32_t tokens[200] = {1, 2, 3, 4}, outside[2] = {1, VOCAB_SIZE};
  size_t count = 0, i;
  progress_state state = {0, 0, 0, 0, "prefill"};

  CHECK(mistral_logits(session, whole, VOCAB_SIZE, &count) == MISTRAL_E_ARGUMENT);
  CHECK(mistral_prefill(session, tokens, 0, NULL, NULL, NULL) == MISTRAL_E_ARGUMENT);
  CHECK(mistral_prefill(session, outside, 2, NULL, NULL, NULL) == MISTRAL_E_ARGUMENT && last_error_has("tokens[1]"));
  CHECK(mistral_prefill(session, tokens, 200, NULL, NULL, NULL) == MISTRAL_E_CONTEXT_FULL && last_error_has("128"));
  OK(mistral_prefill(session, tokens, 4, NULL, on_progress, &state));
  CHECK(state.calls > 0 && state.last == 4 && state.total == 4);
  CHECK(mistral_logits(session, whole, 10, &count) == MISTRAL_E_BUFFER_TOO_SMALL && count == VOCAB_SIZE);
  OK(mistral_logits(session, whole, VOCAB_SIZE, &count));
  OK(mistral_session_reset(session));
  for (i = 0; i < 4; i++) OK(mistral_prefill(session, tokens + i, 1, NULL, NULL, NULL));
  OK(mistral_logits(session, parts, VOCAB_SIZE, &count));
  for (i = 0; i < VOCAB_SIZE; i++) CHECK(fabsf(whole[i] - parts[i]) < 1e-5f);
  OK(mistral_session_stats(session, &buf));
  CHECK(strstr(mistral_buf_data(buf), "{\"tokens\":4,\"evaluated\":4,\"context\":128,\"cache_type\":\"f16\"") != NULL);
  OK(mistral_buf_free(buf));
  CHECK(mistral_session_new(model, "{\"context\": 2000000000}", 23, &other) == MISTRAL_E_LIMIT && other == NULL);
  CHECK(mistral_session_new(model, "{\"context\": 0}", 14, &other) == MISTRAL_E_ARGUMENT && other == NULL);
  /* The session keeps the model alive. */
  OK(mistral_model_free(model));
  OK(mistral_prefill(session, tokens, 4, NULL, NULL, NULL));
  CHECK(mistral_session_new(model, NULL, 0, &other) == MISTRAL_E_HANDLE);
  OK(mistral_session_free(session));
  CHECK(mistral_session_free(session) == MISTRAL_E_HANDLE);
}

typedef struct {
  mistral_session *session;
  mistral_cancel *cancel;
  int calls, stop_at, cancel_at;
  uint32_t tokens[128];
  char text[1024];
  size_t text_len;
  int32_t finish_reason;
  int probabilities;
} generation_state;

static void *trigger(void *cancel) {
  OK(mistral_cancel_trigger(cancel));
  return NULL;
}

static int32_t on_event(void *user_data, const mistral_event *event) {
  generation_state *state = user_data;
  float logit;
  size_t count;
  CHECK(event->struct_size == sizeof *event && event->text[event->text_len] == 0);
  CHECK(state->finish_reason == MISTRAL_FINISH_NONE);
  memcpy(state->text + state->text_len, event->text, event->text_len);
  state->text_len += event->text_len;
  state->tokens[state->calls++] = event->token;
  state->finish_reason = event->finish_reason;
  if (state->probabilities) {
    CHECK(event->top_logprobs_len == 2 && event->top_logprobs[0].token == event->token);
    CHECK(event->logprob == event->top_logprobs[0].logprob && event->logprob >= event->top_logprobs[1].logprob);
  } else {
    CHECK(event->top_logprobs_len == 0 && isnan(event->logprob));
  }
  /* The session is in use, by the call that made this one. */
  CHECK(mistral_session_reset(state->session) == MISTRAL_E_BUSY && last_error_has("session"));
  CHECK(mistral_logits(state->session, &logit, 1, &count) == MISTRAL_E_BUSY);
  CHECK(mistral_generate(state->session, NULL, 0, NULL, 0, NULL, on_event, NULL) == MISTRAL_E_BUSY);
  if (state->calls == state->cancel_at) {
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, trigger, state->cancel) == 0 && pthread_join(thread, NULL) == 0);
  }
  return state->calls == state->stop_at;
}

static mistral_status generate(generation_state *state, const char *options) {
  uint32_t tokens[2] = {104, 105};
  return mistral_generate(state->session, tokens, 2, options, strlen(options), state->cancel, on_event, state);
}

static void generating(void) {
  const char *options = "{\"max_tokens\": 12, \"ignore_eos\": true}";
  mistral_model *model = open_model();
  generation_state first = {0}, second = {0}, third = {0};
  mistral_generation *generation = NULL;
  const mistral_event *event = NULL;
  mistral_buf *buf = NULL;
  uint32_t tokens[2] = {104, 105};
  float logits[VOCAB_SIZE];
  size_t count;
  int i;

  first.session = second.session = third.session = new_session(model, CONTEXT);
  OK(generate(&first, options));
  CHECK(first.calls == 12 && first.finish_reason == MISTRAL_FINISH_LENGTH);
  OK(mistral_decode(model, first.tokens, 12, NULL, 0, &buf));
  CHECK(mistral_buf_len(buf) == first.text_len && memcmp(mistral_buf_data(buf), first.text, first.text_len) == 0);
  OK(mistral_buf_free(buf));

  /* The same one event at a time, and as steps. */
  OK(mistral_session_reset(first.session));
  OK(mistral_generation_new(first.session, tokens, 2, options, strlen(options), NULL, NULL, NULL, &generation));
  CHECK(mistral_session_reset(first.session) == MISTRAL_E_BUSY && last_error_has("generation"));
  for (i = 0; i < 12; i++) {
    OK(mistral_generation_next(generation, &event));
    CHECK(event->token == first.tokens[i] && (event->finish_reason == MISTRAL_FINISH_LENGTH) == (i == 11));
  }
  CHECK(mistral_generation_next(generation, &event) == MISTRAL_E_ARGUMENT);
  OK(mistral_generation_free(generation));
  CHECK(mistral_generation_free(generation) == MISTRAL_E_HANDLE);
  OK(mistral_session_reset(first.session));
  OK(mistral_prefill(first.session, tokens, 2, NULL, NULL, NULL));
  for (i = 0; i < 12; i++) {
    OK(mistral_logits(first.session, logits, VOCAB_SIZE, &count));
    CHECK(largest(logits) == first.tokens[i]);
    OK(mistral_prefill(first.session, first.tokens + i, 1, NULL, NULL, NULL));
  }

  /* Stopped by the callback, and from another thread. */
  OK(mistral_session_reset(first.session));
  second.stop_at = 3;
  CHECK(generate(&second, options) == MISTRAL_E_CANCELLED && second.calls == 3);
  OK(mistral_session_reset(first.session));
  OK(mistral_cancel_new(&third.cancel));
  third.cancel_at = 5;
  third.probabilities = 1;
  CHECK(generate(&third, "{\"ignore_eos\": true, \"logprobs\": 2}") == MISTRAL_E_CANCELLED && third.calls == 5);
  CHECK(generate(&third, options) == MISTRAL_E_CANCELLED && third.calls == 5);
  OK(mistral_cancel_free(third.cancel));

  /* A full context is a reason to finish; a wrong option is named before anything is done. */
  OK(mistral_session_free(first.session));
  memset(&first, 0, sizeof first);
  first.session = new_session(model, "{\"context\": 6}");
  CHECK(generate(&first, "{\"max_token\": 1}") == MISTRAL_E_ARGUMENT && last_error_has("max_token`"));
  CHECK(generate(&first, "{\"temperature\": -1}") == MISTRAL_E_ARGUMENT && last_error_has("temperature"));
  CHECK(generate(&first, "{\"stop_tokens\": [260]}") == MISTRAL_E_ARGUMENT && last_error_has("stop_tokens[0]"));
  CHECK(mistral_generate(first.session, NULL, 0, NULL, 0, NULL, on_event, &first) == MISTRAL_E_ARGUMENT);
  OK(generate(&first, "{\"ignore_eos\": true}"));
  CHECK(first.finish_reason == MISTRAL_FINISH_CONTEXT_FULL);

  /* The order of frees is free. */
  OK(mistral_session_reset(first.session));
  OK(mistral_generation_new(first.session, tokens, 2, NULL, 0, NULL, NULL, NULL, &generation));
  OK(mistral_model_free(model));
  OK(mistral_session_free(first.session));
  OK(mistral_generation_next(generation, &event));
  OK(mistral_generation_free(generation));
}

static int32_t on_chunk(void *user_data, const char *chunk, size_t len) {
  int *calls = user_data;
  CHECK(chunk[0] == '{' && chunk[len] == 0 && strstr(chunk, "chat.completion.chunk") != NULL);
  return ++*calls == 3;
}

/* Stops at the chunk counts[1]. */
static int32_t on_chunk_until(void *user_data, const char *chunk, size_t len) {
  int *counts = user_data;
  CHECK(chunk[len] == 0);
  return ++counts[0] == counts[1];
}

/* The second turn does not evaluate the first again. */
static void chatting_on_a_session(void) {
  const char *first = "{\"messages\": [{\"role\": \"user\", \"content\": \"hello\"}], \"max_tokens\": 4}";
  const char *second =
      "{\"messages\": [{\"role\": \"user\", \"content\": \"hello\"}, {\"role\": \"assistant\", \"content\": \"yes\"},"
      " {\"role\": \"user\", \"content\": \"and\"}], \"max_tokens\": 4, \"stream\": true}";
  mistral_model *model = open_model();
  mistral_session *session = new_session(model, CONTEXT), *small = new_session(model, "{\"context\": 4}");
  mistral_buf *response = NULL;
  int calls = -100;
  OK(mistral_session_chat(session, first, strlen(first), NULL, NULL, NULL, &response));
  CHECK(strstr(mistral_buf_data(response), "\"prompt_tokens\":11") != NULL);
  CHECK(strstr(mistral_buf_data(response), "\"cached_tokens\":0") != NULL);
  OK(mistral_buf_free(response));
  response = NULL;
  CHECK(mistral_session_chat(session, second, strlen(second), NULL, NULL, NULL, &response) == MISTRAL_E_NULL);
  OK(mistral_session_chat(session, second, strlen(second), NULL, on_chunk, &calls, &response));
  CHECK(calls > -100 && strstr(mistral_buf_data(response), "\"cached_tokens\":11") != NULL);
  OK(mistral_buf_free(response));
  response = NULL;
  CHECK(mistral_session_chat(small, first, strlen(first), NULL, NULL, NULL, &response) == MISTRAL_E_CONTEXT_FULL);
  CHECK(mistral_session_chat(small, "{}", 2, NULL, NULL, NULL, &response) == MISTRAL_E_ARGUMENT && response == NULL);
  OK(mistral_session_free(small));
  OK(mistral_session_free(session));
  OK(mistral_model_free(model));
}

static void chatting(void) {
  mistral_model *model = open_model();
  mistral_buf *response = NULL;
  const char *request = "{\"messages\": [{\"role\": \"user\", \"content\": \"hello\"}], \"max_tokens\": 4}";
  const char *stream = "{\"messages\": [{\"role\": \"user\", \"content\": \"hello\"}], \"max_tokens\": 9, \"stream\": true}";
  int calls = 0, chunks, counts[2] = {0, 0};
  static char deep[600];
  OK(mistral_chat(model, request, strlen(request), NULL, NULL, NULL, &response));
  CHECK(strstr(mistral_buf_data(response), "\"chat.completion\"") != NULL);
  OK(mistral_buf_free(response));
  response = NULL;
  CHECK(mistral_chat(model, stream, strlen(stream), NULL, on_chunk, &calls, &response) == MISTRAL_E_CANCELLED);
  CHECK(calls == 3 && response == NULL);
  /* The last chunk as well as any. */
  OK(mistral_chat(model, stream, strlen(stream), NULL, on_chunk_until, counts, &response));
  OK(mistral_buf_free(response));
  response = NULL;
  for (chunks = counts[0]; counts[1] < chunks;) {
    counts[0] = 0;
    counts[1]++;
    CHECK(mistral_chat(model, stream, strlen(stream), NULL, on_chunk_until, counts, &response) == MISTRAL_E_CANCELLED);
    CHECK(counts[0] == counts[1] && response == NULL);
  }
  CHECK(mistral_chat(model, stream, strlen(stream), NULL, NULL, NULL, &response) == MISTRAL_E_NULL);
  /* It is read as mistral_chat_encode reads it, whose parser goes deeper than that of the options. */
  strcpy(deep, "{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}], \"tools\": [{\"function\": {\"name\": \"f\", \"parameters\": {\"x\": ");
  memset(deep + strlen(deep), '[', 130);
  memset(deep + strlen(deep), ']', 130);
  strcat(deep, "}}}]}");
  CHECK(mistral_chat(model, deep, strlen(deep), NULL, NULL, NULL, &response) == MISTRAL_E_UNSUPPORTED && last_error_has("tools"));
  CHECK(mistral_chat(model, "{}", 2, NULL, NULL, NULL, &response) == MISTRAL_E_ARGUMENT && last_error_has("messages"));
  CHECK(mistral_chat(model, "{\"secret", 8, NULL, NULL, NULL, &response) == MISTRAL_E_ARGUMENT);
  CHECK(last_error_has("request") && !last_error_has("secret"));
  OK(mistral_model_free(model));
}

static void parse(const mistral_model *model, const char *text, const uint32_t *tokens, size_t count, const char *part) {
  mistral_buf *buf = NULL;
  OK(mistral_chat_parse(model, text, text ? strlen(text) : 0, tokens, count, NULL, 0, &buf));
  CHECK(strstr(mistral_buf_data(buf), part) != NULL);
  OK(mistral_buf_free(buf));
}

/* The steps of a chat, with a template and with a format of Mistral's, the latter without weights. */
static void preparing(const char *tokenizer) {
  mistral_model *model = open_model(), *alone = NULL;
  mistral_session *session = NULL;
  mistral_buf *buf = NULL;
  const char *request = "{\"messages\": [{\"role\": \"user\", \"content\": \"hello\"}]}";
  const char *serving = "{\"mode\": \"serving\"}", *v1 = "{\"tokenizer_version\": \"v1\"}";
  const char *call = "Ah[TOOL_CALLS][{\"name\": \"f\", \"arguments\": {}}]";
  uint32_t tokens[64], again[64];
  size_t count = 0, len = strlen(request);

  OK(mistral_chat_render(model, request, len, NULL, 0, &buf));
  CHECK(strcmp(mistral_buf_data(buf), "<s>user: hello\n") == 0);
  OK(mistral_buf_free(buf));
  OK(mistral_chat_encode(model, request, len, NULL, 0, tokens, 64, &count));
  CHECK(count == 11 && tokens[0] == 258);
  CHECK(mistral_fim_encode(model, "a", 1, "b", 1, tokens, 64, &count) == MISTRAL_E_UNSUPPORTED && last_error_has("SUFFIX"));
  parse(model, "Hi</s> not this", NULL, 0, "\"content\":\"Hi\"");
  OK(mistral_model_free(model));

  OK(open_with(tokenizer, "{\"weights\": false}", &alone));
  CHECK(mistral_session_new(alone, NULL, 0, &session) == MISTRAL_E_UNSUPPORTED && last_error_has("without weights"));
  buf = NULL;
  CHECK(mistral_chat(alone, request, len, NULL, NULL, NULL, &buf) == MISTRAL_E_UNSUPPORTED && buf == NULL);
  OK(mistral_chat_render(alone, request, len, NULL, 0, &buf));
  CHECK(strcmp(mistral_buf_data(buf), "<s>[INST]\342\226\201hello[/INST]") == 0);
  OK(mistral_chat_encode(alone, request, len, NULL, 0, tokens, 64, &count));
  OK(mistral_buf_free(buf));
  OK(mistral_encode(alone, "<s>[INST]hello[/INST]", 21, "{\"special\": true}", 17, again, 64, &count));
  CHECK(tokens[0] == 1 && memcmp(tokens, again, count * sizeof *tokens) == 0);
  CHECK(mistral_chat_encode(alone, request, len, NULL, 0, NULL, 0, &count) == MISTRAL_E_BUFFER_TOO_SMALL && count > 3);
  CHECK(mistral_chat_encode(alone, request, len, serving, strlen(serving), tokens, 64, &count) == MISTRAL_E_ARGUMENT);
  CHECK(last_error_has("model") && last_error_has("serving"));
  CHECK(mistral_chat_encode(alone, "{\"messages\": []}", 16, NULL, 0, tokens, 64, &count) == MISTRAL_E_ARGUMENT);
  CHECK(mistral_chat_render(alone, request, len, "{\"mod\": 1}", 10, &buf) == MISTRAL_E_ARGUMENT && last_error_has("mod"));

  OK(mistral_fim_encode(alone, "def f(", 6, "return x", 8, tokens, 64, &count));
  OK(mistral_decode(alone, tokens, count, "{\"special\": true}", 17, &buf));
  CHECK(strncmp(mistral_buf_data(buf), "<s>[SUFFIX]", 11) == 0 && strstr(mistral_buf_data(buf), "return x[PREFIX] def f(") != NULL);
  OK(mistral_buf_free(buf));

  parse(alone, call, NULL, 0, "\"content\":\"Ah\",\"tool_calls\":[{\"id\":\"");
  parse(alone, "", NULL, 0, "\"content\":\"\"");
  parse(alone, NULL, NULL, 0, "\"content\":\"\"");
  parse(alone, "[TOOL_CALLS][{\"name\": \"f\"", NULL, 0, "\"reason\":\"truncated\"");
  OK(mistral_encode(alone, call, strlen(call), "{\"special\": true}", 17, tokens, 64, &count));
  parse(alone, NULL, tokens, count, "\"tool_calls\":[{");
  OK(mistral_chat_parse(alone, call, strlen(call), NULL, 0, v1, strlen(v1), &buf));
  CHECK(strstr(mistral_buf_data(buf), "tool_calls") == NULL);
  OK(mistral_buf_free(buf));
  CHECK(mistral_chat_parse(alone, call, strlen(call), tokens, count, NULL, 0, &buf) == MISTRAL_E_ARGUMENT);
  tokens[0] = 1000000;
  CHECK(mistral_chat_parse(alone, NULL, 0, tokens, 1, NULL, 0, &buf) == MISTRAL_E_ARGUMENT);
  OK(mistral_model_free(alone));
}

static void logits_of(const mistral_model *model, const uint32_t *tokens, size_t count, float *logits) {
  mistral_session *session = new_session(model, CONTEXT);
  size_t found = 0;
  OK(mistral_prefill(session, tokens, count, NULL, NULL, NULL));
  OK(mistral_logits(session, logits, VOCAB_SIZE, &found));
  OK(mistral_session_free(session));
}

static void check_logits(mistral_session *session, const mistral_model *model, const uint32_t *tokens, size_t count) {
  float found[VOCAB_SIZE], expected[VOCAB_SIZE];
  size_t len = 0;
  OK(mistral_logits(session, found, VOCAB_SIZE, &len));
  logits_of(model, tokens, count, expected);
  CHECK(memcmp(found, expected, sizeof found) == 0);
}

static void branching(void) {
  mistral_model *model = open_model();
  mistral_session *session = new_session(model, CONTEXT), *fork = NULL;
  uint32_t tokens[4] = {1, 2, 3, 4}, others[4] = {1, 2, 3, 9};
  float logits[VOCAB_SIZE];
  size_t count = 0;
  OK(mistral_session_trim(session, 0));
  OK(mistral_prefill(session, tokens, 3, NULL, NULL, NULL));
  OK(mistral_session_fork(session, &fork));
  OK(mistral_prefill(fork, others + 3, 1, NULL, NULL, NULL));
  OK(mistral_prefill(session, tokens + 3, 1, NULL, NULL, NULL));
  check_logits(fork, model, others, 4);
  check_logits(session, model, tokens, 4);
  OK(mistral_session_free(session));
  CHECK(mistral_session_trim(fork, 5) == MISTRAL_E_ARGUMENT && last_error_has("count"));
  OK(mistral_session_trim(fork, 2));
  check_logits(fork, model, others, 2);
  OK(mistral_prefill(fork, tokens + 2, 2, NULL, NULL, NULL));
  check_logits(fork, model, tokens, 4);
  OK(mistral_session_trim(fork, 0));
  CHECK(mistral_logits(fork, logits, VOCAB_SIZE, &count) == MISTRAL_E_ARGUMENT);
  OK(mistral_session_free(fork));
  OK(mistral_model_free(model));
}

static mistral_status load(const mistral_model *model, const void *blob, size_t len, const char *options, mistral_session **out) {
  return mistral_session_load(model, blob, len, options, strlen(options), NULL, NULL, NULL, out);
}

static void saving(void) {
  const char *key = "{\"key\": \"00112233445566778899aabbccddeeff\"}", *other = "{\"key\": \"AAECAwQFBgcICQoLDA0ODw==\"}";
  mistral_model *model = open_model(), *exact = NULL;
  mistral_session *session = new_session(model, CONTEXT), *loaded = NULL;
  mistral_buf *buf = NULL;
  uint32_t tokens[3] = {1, 2, 3};
  progress_state state = {0, 0, 0, 0, "digest"}, stops = {0, 1, 0, 0, "digest"};
  unsigned char *bytes;
  size_t len, i;

  OK(mistral_prefill(session, tokens, 3, NULL, NULL, NULL));
  CHECK(mistral_session_save(session, NULL, 0, NULL, on_progress, &stops, &buf) == MISTRAL_E_CANCELLED && buf == NULL);
  OK(mistral_session_save(session, key, strlen(key), NULL, on_progress, &state, &buf));
  CHECK(state.calls > 0 && state.last == state.total);
  len = mistral_buf_len(buf);
  bytes = malloc(len);
  memcpy(bytes, mistral_buf_data(buf), len);
  OK(mistral_buf_free(buf));
  OK(load(model, bytes, len, key, &loaded));
  check_logits(loaded, model, tokens, 3);
  OK(mistral_session_free(loaded));
  loaded = NULL;
  for (i = 0; i < len; i += 37) {
    bytes[i] ^= 4;
    CHECK(load(model, bytes, len, key, &loaded) != MISTRAL_OK && loaded == NULL);
    bytes[i] ^= 4;
    CHECK(load(model, bytes, i, key, &loaded) != MISTRAL_OK && loaded == NULL);
  }
  bytes[len - 40] ^= 1;
  CHECK(load(model, bytes, len, key, &loaded) == MISTRAL_E_INTEGRITY);
  bytes[len - 40] ^= 1;
  CHECK(load(model, bytes, len, other, &loaded) == MISTRAL_E_INTEGRITY);
  CHECK(load(model, bytes, len, "{}", &loaded) == MISTRAL_E_INTEGRITY && last_error_has("key"));
  CHECK(load(model, bytes, len, "{\"key\": \"AAEC\"}", &loaded) == MISTRAL_E_ARGUMENT && last_error_has("16"));
  CHECK(load(model, "text", 4, "{}", &loaded) == MISTRAL_E_FORMAT);
  CHECK(load(model, bytes, (size_t)-1, "{}", &loaded) == MISTRAL_E_ARGUMENT);
  bytes[8] = 9;
  CHECK(load(model, bytes, len, key, &loaded) == MISTRAL_E_UNSUPPORTED && last_error_has("version"));
  bytes[8] = 1;
  OK(open_with(model_path, "{\"activation\": \"f32\"}", &exact));
  CHECK(load(exact, bytes, len, key, &loaded) == MISTRAL_E_INTEGRITY);
  CHECK(load(model, bytes, len, "{\"key\": \"00112233445566778899aabbccddeeff\", \"context\": 1}", &loaded) == MISTRAL_E_CONTEXT_FULL);
  CHECK(loaded == NULL);
  free(bytes);
  OK(mistral_session_free(session));
  OK(mistral_model_free(exact));
  OK(mistral_model_free(model));
}

/* The loop of a host that steps by itself gives the tokens of mistral_generate. */
static void sampling(void) {
  const char *options = "{\"temperature\": 1, \"seed\": 5}";
  mistral_model *model = open_model();
  generation_state state = {0};
  uint32_t tokens[2] = {104, 105}, all[14], token = 0;
  float logprob = 0, first = 0;
  int i;
  state.session = new_session(model, CONTEXT);
  OK(generate(&state, "{\"temperature\": 1, \"seed\": 5, \"max_tokens\": 12, \"ignore_eos\": true}"));
  OK(mistral_session_reset(state.session));
  CHECK(mistral_sample(state.session, options, strlen(options), NULL, &token, NULL) == MISTRAL_E_ARGUMENT);
  OK(mistral_prefill(state.session, tokens, 2, NULL, NULL, NULL));
  memcpy(all, tokens, sizeof tokens);
  for (i = 0; i < 12; i++) {
    OK(mistral_sample(state.session, options, strlen(options), NULL, &token, i % 2 ? &logprob : NULL));
    CHECK(token == state.tokens[i] && (i % 2 == 0 || logprob < 0));
    all[i + 2] = token;
    if (i % 3 == 0) check_logits(state.session, model, all, (size_t)i + 3);
  }
  check_logits(state.session, model, all, 14);
  /* The logarithm of its probability; then tokens of the host's own. */
  {
    float logits[VOCAB_SIZE];
    double sum = 0;
    logits_of(model, all, 14, logits);
    OK(mistral_sample(state.session, NULL, 0, NULL, &token, &first));
    CHECK(token == largest(logits));
    for (i = 0; i < VOCAB_SIZE; i++) sum += exp((double)logits[i] - (double)logits[token]);
    CHECK(fabs(exp((double)first) * sum - 1) < 1e-5);
  }
  CHECK(mistral_sample(state.session, "{\"max_tokens\": 1}", 17, NULL, &token, NULL) == MISTRAL_E_ARGUMENT);
  OK(mistral_session_free(state.session));
  state.session = new_session(model, "{\"context\": 2}");
  OK(mistral_prefill(state.session, tokens, 2, NULL, NULL, NULL));
  OK(mistral_sample(state.session, NULL, 0, NULL, &token, NULL));
  CHECK(mistral_sample(state.session, NULL, 0, NULL, &token, NULL) == MISTRAL_E_CONTEXT_FULL);
  OK(mistral_session_free(state.session));
  OK(mistral_model_free(model));
}

static void embedding(void) {
  mistral_model *model = open_model();
  uint32_t tokens[600] = {1, 2, 3}, outside = VOCAB_SIZE;
  float vector[32], again[32];
  double length = 0;
  size_t count = 0;
  int i;
  CHECK(mistral_embed(model, tokens, 3, NULL, 0, NULL, NULL, 0, &count) == MISTRAL_E_BUFFER_TOO_SMALL && count == 32);
  OK(mistral_embed(model, tokens, 3, NULL, 0, NULL, vector, 32, &count));
  for (i = 0; i < 32; i++) length += (double)vector[i] * (double)vector[i];
  CHECK(fabs(length - 1) < 1e-5);
  OK(mistral_embed(model, tokens, 3, "{\"pooling\": \"last\"}", 19, NULL, again, 32, &count));
  CHECK(memcmp(vector, again, sizeof vector) != 0);
  OK(mistral_embed(model, tokens, 3, "{\"pooling\": \"mean\"}", 19, NULL, again, 32, &count));
  CHECK(memcmp(vector, again, sizeof vector) == 0);
  CHECK(mistral_embed(model, tokens, 0, NULL, 0, NULL, vector, 32, &count) == MISTRAL_E_ARGUMENT);
  CHECK(mistral_embed(model, &outside, 1, NULL, 0, NULL, vector, 32, &count) == MISTRAL_E_ARGUMENT);
  CHECK(mistral_embed(model, tokens, 600, NULL, 0, NULL, vector, 32, &count) == MISTRAL_E_LIMIT && last_error_has("512"));
  CHECK(mistral_embed(model, tokens, 3, "{\"pooling\": \"max\"}", 18, NULL, vector, 32, &count) == MISTRAL_E_ARGUMENT);
  OK(mistral_model_free(model));
}

static mistral_status estimate(const char *path, const char *options, mistral_buf **out) {
  return mistral_model_estimate(path, strlen(path), options, strlen(options), out);
}

static void limits(void) {
  const char *chat = "{\"messages\": [{\"role\": \"user\", \"content\": \"hello\"}], \"max_tokens\": 9}";
  mistral_model *model = NULL;
  mistral_session *session = NULL, *other = NULL;
  mistral_buf *buf = NULL;
  uint32_t tokens[100] = {1, 2, 3}, token = 0;
  float vector[32];
  size_t count;
  generation_state state = {0};

  OK(estimate(model_path, "{\"context\": 64, \"sessions\": 3, \"cache_type\": \"f32\"}", &buf));
  CHECK(strstr(mistral_buf_data(buf), "\"sessions\":3") != NULL && strstr(mistral_buf_data(buf), "\"gguf\"") != NULL);
  OK(mistral_buf_free(buf));
  buf = NULL;
  CHECK(estimate(model_path, "{\"max_memory\": 100}", &buf) == MISTRAL_E_LIMIT && last_error_has("max_memory"));
  CHECK(estimate(model_path, "{\"context\": 2000000000}", &buf) == MISTRAL_E_LIMIT && last_error_has("context"));
  CHECK(estimate("/nowhere", "{}", &buf) == MISTRAL_E_IO && estimate(model_path, "{\"x\": 1}", &buf) == MISTRAL_E_ARGUMENT);
  CHECK(buf == NULL);

  CHECK(open_with(model_path, "{\"max_model_bytes\": 100}", &model) == MISTRAL_E_LIMIT && last_error_has("max_model_bytes"));
  OK(open_with(model_path, "{\"max_sessions\": 1, \"max_prompt_tokens\": 5, \"max_output_tokens\": 4}", &model));
  session = state.session = new_session(model, CONTEXT);
  CHECK(mistral_session_new(model, NULL, 0, &other) == MISTRAL_E_LIMIT && last_error_has("max_sessions"));
  CHECK(mistral_session_fork(session, &other) == MISTRAL_E_LIMIT && other == NULL);
  CHECK(mistral_embed(model, tokens, 3, NULL, 0, NULL, vector, 32, &count) == MISTRAL_E_LIMIT);
  CHECK(mistral_prefill(session, tokens, 6, NULL, NULL, NULL) == MISTRAL_E_LIMIT && last_error_has("max_prompt_tokens"));
  CHECK(generate(&state, "{\"max_tokens\": 5}") == MISTRAL_E_LIMIT && last_error_has("max_output_tokens"));
  CHECK(mistral_chat(model, chat, strlen(chat), NULL, NULL, NULL, &buf) == MISTRAL_E_LIMIT);
  CHECK(mistral_session_chat(session, chat, strlen(chat), NULL, NULL, NULL, &buf) == MISTRAL_E_LIMIT && buf == NULL);
  OK(generate(&state, "{\"ignore_eos\": true}"));
  CHECK(state.calls == 4 && state.finish_reason == MISTRAL_FINISH_LENGTH);
  OK(mistral_session_free(session));

  /* No time at all: every call that evaluates ends, and the session is as it was. */
  session = new_session(model, "{\"context\": 128, \"max_time_ms\": 0}");
  CHECK(mistral_prefill(session, tokens, 3, NULL, NULL, NULL) == MISTRAL_E_LIMIT && last_error_has("max_time_ms"));
  CHECK(mistral_sample(session, NULL, 0, NULL, &token, NULL) == MISTRAL_E_ARGUMENT);
  OK(mistral_session_free(session));
  OK(mistral_model_free(model));
}

typedef struct { const mistral_model *model; uint32_t tokens[16]; } worker_state;

static void *worker(void *argument) {
  worker_state *state = argument;
  int i;
  for (i = 0; i < 10; i++) {
    generation_state generation = {0};
    generation.session = new_session(state->model, CONTEXT);
    OK(generate(&generation, "{\"max_tokens\": 16, \"ignore_eos\": true, \"temperature\": 1, \"seed\": 5}"));
    memcpy(state->tokens, generation.tokens, sizeof state->tokens);
    OK(mistral_session_free(generation.session));
  }
  return NULL;
}

static void threads(void) {
  mistral_model *model = open_model();
  pthread_t threads[8];
  worker_state states[8];
  int i;
  for (i = 0; i < 8; i++) {
    states[i].model = model;
    CHECK(pthread_create(&threads[i], NULL, worker, &states[i]) == 0);
  }
  for (i = 0; i < 8; i++) CHECK(pthread_join(threads[i], NULL) == 0);
  for (i = 1; i < 8; i++) CHECK(memcmp(states[i].tokens, states[0].tokens, sizeof states[0].tokens) == 0);
  OK(mistral_model_free(model));
}

static void forking(void) {
  mistral_model *model = open_model(), *own = NULL;
  mistral_session *session = new_session(model, CONTEXT);
  mistral_buf *buf = NULL;
  uint32_t token = 1;
  int status = 0;
  pid_t child;
  OK(mistral_devices(&buf));
  child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    CHECK(mistral_prefill(session, &token, 1, NULL, NULL, NULL) == MISTRAL_E_FORKED);
    CHECK(mistral_session_free(session) == MISTRAL_E_FORKED && mistral_model_free(model) == MISTRAL_E_FORKED);
    CHECK(mistral_buf_data(buf) == NULL);
    own = open_model();
    CHECK(mistral_prefill(session, &token, 1, NULL, NULL, NULL) == MISTRAL_E_FORKED);
    session = new_session(own, CONTEXT);
    OK(mistral_prefill(session, &token, 1, NULL, NULL, NULL));
    OK(mistral_session_free(session));
    OK(mistral_model_free(own));
    _exit(0);
  }
  CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
  OK(mistral_prefill(session, &token, 1, NULL, NULL, NULL));
  OK(mistral_buf_free(buf));
  OK(mistral_session_free(session));
  OK(mistral_model_free(model));
}

int main(int argc, char **argv) {
  CHECK(argc == 4);
  model_path = argv[1];
  errors_of_a_thread(NULL);
  library();
  last_error();
  {
    char empty[1024];
    snprintf(empty, sizeof empty, "%s/empty-%ld", argv[2], (long)getpid());
    CHECK(mkdtemp(strcat(empty, "-XXXXXX")) != NULL);
    opening(empty);
    CHECK(rmdir(empty) == 0);
  }
  progress_and_cancel();
  text();
  steps();
  generating();
  chatting();
  preparing(argv[3]);
  chatting_on_a_session();
  branching();
  saving();
  sampling();
  embedding();
  limits();
  threads();
  forking();
  return 0;
}
