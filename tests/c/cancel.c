/*
 * Calls that another thread cancels, at a place that is known: cancel MODEL. Each callback has a thread trigger the cancel object and waits
 * for it, so what comes after must be the end of the call. Prints nothing unless it fails.
 */
#define _POSIX_C_SOURCE 200809L
#include "check.h"

#include <pthread.h>

#define LEN(text) text, strlen(text)

typedef struct { mistral_cancel *cancel; int calls, cancel_at; const char *phase; } followed;

static void *trigger(void *cancel) {
  OK(mistral_cancel_trigger(cancel));
  return NULL;
}

/* The callbacks go on; it is the cancel object that ends the call. */
static int32_t called(followed *state) {
  pthread_t thread;
  if (++state->calls == state->cancel_at)
    CHECK(pthread_create(&thread, NULL, trigger, state->cancel) == 0 && pthread_join(thread, NULL) == 0);
  return 0;
}

static int32_t on_progress(void *user_data, const mistral_progress *progress) {
  followed *state = user_data;
  CHECK(strcmp(progress->phase, state->phase) == 0);
  return called(state);
}

static int32_t on_event(void *user_data, const mistral_event *event) {
  (void)event;
  return called(user_data);
}

static int32_t on_chunk(void *user_data, const char *chunk, size_t len) {
  CHECK(chunk[len] == 0);
  return called(user_data);
}

static followed after(mistral_cancel *cancel, int calls, const char *phase) {
  followed state = {0};
  OK(mistral_cancel_reset(cancel));
  state.cancel = cancel;
  state.cancel_at = calls;
  state.phase = phase;
  return state;
}

static void loading(const char *path, mistral_cancel *cancel) {
  mistral_model *model = NULL;
  int at;
  for (at = 1; at <= 10; at += 3) {
    followed state = after(cancel, at, "load");
    CHECK(mistral_model_open(LEN(path), NULL, 0, cancel, on_progress, &state, &model) == MISTRAL_E_CANCELLED);
    CHECK(state.calls == at && model == NULL);
  }
}

/* 1024 tokens are eight passes; what was evaluated stays, and the session goes on. */
static void prefilling(const mistral_model *model, mistral_cancel *cancel) {
  static uint32_t tokens[1024];
  mistral_session *session = NULL;
  mistral_generation *generation = NULL;
  mistral_buf *stats = NULL;
  followed state = after(cancel, 2, "prefill");
  OK(mistral_session_new(model, LEN("{\"context\": 2048}"), &session));
  CHECK(mistral_prefill(session, tokens, 1024, cancel, on_progress, &state) == MISTRAL_E_CANCELLED && state.calls == 2);
  OK(mistral_session_stats(session, &stats));
  CHECK(strstr(mistral_buf_data(stats), "\"tokens\":256,") != NULL);
  OK(mistral_buf_free(stats));
  /* It stays cancelled until it is reset. */
  CHECK(mistral_prefill(session, tokens, 1024, cancel, on_progress, &state) == MISTRAL_E_CANCELLED);
  state = after(cancel, 1, "prefill");
  CHECK(mistral_generation_new(session, tokens, 1024, NULL, 0, cancel, on_progress, &state, &generation) == MISTRAL_E_CANCELLED);
  CHECK(generation == NULL && state.calls == 1);
  OK(mistral_cancel_reset(cancel));
  OK(mistral_prefill(session, tokens, 8, cancel, NULL, NULL));
  OK(mistral_session_free(session));
}

/* Within one step: no event comes after the one in which the object was triggered. */
static void decoding(const mistral_model *model, mistral_cancel *cancel) {
  const char *options = "{\"ignore_eos\": true}";
  const char *request = "{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}], \"stream\": true, \"max_tokens\": 100, \"logprobs\": true}";
  mistral_session *session = NULL;
  mistral_generation *generation = NULL;
  mistral_buf *response = NULL;
  const mistral_event *event = NULL;
  uint32_t token = 1;
  pthread_t thread;
  int i;
  followed state = after(cancel, 7, NULL);
  OK(mistral_session_new(model, LEN("{\"context\": 256}"), &session));
  CHECK(mistral_generate(session, &token, 1, LEN(options), cancel, on_event, &state) == MISTRAL_E_CANCELLED && state.calls == 7);
  OK(mistral_cancel_reset(cancel));
  OK(mistral_generation_new(session, &token, 1, LEN(options), cancel, NULL, NULL, &generation));
  for (i = 0; i < 5; i++) OK(mistral_generation_next(generation, &event));
  CHECK(pthread_create(&thread, NULL, trigger, cancel) == 0 && pthread_join(thread, NULL) == 0);
  CHECK(mistral_generation_next(generation, &event) == MISTRAL_E_CANCELLED);
  OK(mistral_generation_free(generation));
  state = after(cancel, 3, NULL);
  CHECK(mistral_chat(model, LEN(request), cancel, on_chunk, &state, &response) == MISTRAL_E_CANCELLED);
  CHECK(state.calls == 3 && response == NULL);
  OK(mistral_session_free(session));
}

/* The object may go while a call follows it: the call goes on, and nothing can stop it any more. */
static int32_t free_the_object(void *user_data, const mistral_event *event) {
  followed *state = user_data;
  (void)event;
  if (state->calls++ == 0) OK(mistral_cancel_free(state->cancel));
  CHECK(mistral_cancel_trigger(state->cancel) == MISTRAL_E_HANDLE);
  return 0;
}

static void freed(const mistral_model *model) {
  mistral_session *session = NULL;
  uint32_t token = 1;
  followed state = {0};
  OK(mistral_cancel_new(&state.cancel));
  OK(mistral_session_new(model, LEN("{\"context\": 256}"), &session));
  OK(mistral_generate(session, &token, 1, LEN("{\"ignore_eos\": true, \"max_tokens\": 5}"), state.cancel, free_the_object, &state));
  CHECK(state.calls == 5);
  OK(mistral_session_free(session));
}

int main(int argc, char **argv) {
  mistral_cancel *cancel = NULL;
  mistral_model *model = NULL;
  CHECK(argc == 2);
  OK(mistral_cancel_new(&cancel));
  loading(argv[1], cancel);
  OK(mistral_model_open(LEN(argv[1]), NULL, 0, NULL, NULL, NULL, &model));
  prefilling(model, cancel);
  decoding(model, cancel);
  freed(model);
  OK(mistral_model_free(model));
  OK(mistral_cancel_free(cancel));
  return 0;
}
