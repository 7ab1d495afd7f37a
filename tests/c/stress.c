/*
 * Threads with short sessions on one model that cancel each other at random: stress MODEL THREADS SESSIONS [OPTIONS]. An answer that was not
 * cancelled must be the one that the same session gives alone. OPTIONS are the model's. Prints nothing unless it fails.
 */
#define _GNU_SOURCE
#include "check.h"

#include <pthread.h>

#define MAX_THREADS 256
#define ANSWER 6
#define PROMPTS 8

static mistral_model *model;
static mistral_cancel *cancels[MAX_THREADS];
static int threads, sessions;
/* The answers to each prompt, from a session that is alone. */
static uint32_t expected[PROMPTS][ANSWER];

typedef struct { int id; uint64_t random; int finished, cancelled; } worker;
typedef struct { worker *self; int count; uint32_t tokens[ANSWER]; } answer;

/* Marsaglia's xorshift. */
static uint32_t draw(worker *self, uint32_t below) {
  self->random ^= self->random << 13;
  self->random ^= self->random >> 7;
  self->random ^= self->random << 17;
  return (uint32_t)(self->random >> 33) % below;
}

static void cancel_someone(worker *self) {
  if (draw(self, 16) == 0) OK(mistral_cancel_trigger(cancels[draw(self, (uint32_t)threads)]));
}

static int32_t on_event(void *user_data, const mistral_event *event) {
  answer *so_far = user_data;
  CHECK(so_far->count < ANSWER && event->text[event->text_len] == 0);
  so_far->tokens[so_far->count++] = event->token;
  if (so_far->self->id >= 0) cancel_someone(so_far->self);
  return 0;
}

static mistral_status step_by_step(mistral_session *session, const uint32_t *prompt, const char *options, mistral_cancel *cancel, answer *so_far) {
  mistral_generation *generation = NULL;
  const mistral_event *event = NULL;
  mistral_status status = mistral_generation_new(session, prompt, 3, options, strlen(options), cancel, NULL, NULL, &generation);
  while (status == MISTRAL_OK && (!event || event->finish_reason == MISTRAL_FINISH_NONE)) {
    status = mistral_generation_next(generation, &event);
    if (status == MISTRAL_OK) on_event(so_far, event);
  }
  if (generation) {
    CHECK(mistral_session_reset(session) == MISTRAL_E_BUSY);
    OK(mistral_generation_free(generation));
  }
  return status;
}

static mistral_status chat(mistral_cancel *cancel) {
  const char *request = "{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}], \"max_tokens\": 3}";
  mistral_buf *buf = NULL;
  mistral_status status = mistral_chat(model, request, strlen(request), cancel, NULL, NULL, &buf);
  CHECK((buf != NULL) == (status == MISTRAL_OK));
  OK(mistral_buf_free(buf));
  return status;
}

/* One session: its answer, or that it was cancelled. */
static void run(worker *self, uint32_t which, uint32_t how, mistral_cancel *cancel) {
  const char *options = "{\"max_tokens\": 6, \"ignore_eos\": true, \"temperature\": 1, \"seed\": 5}";
  uint32_t prompt[3] = {1, 2, 0};
  mistral_session *session = NULL;
  mistral_status status;
  answer found = {0};
  found.self = self;
  prompt[2] = which;
  OK(mistral_session_new(model, "{\"context\": 32}", 15, &session));
  if (how == 0)
    status = step_by_step(session, prompt, options, cancel, &found);
  else
    status = mistral_generate(session, prompt, 3, options, strlen(options), cancel, on_event, &found);
  if (status == MISTRAL_OK && self->id >= 0) {
    CHECK(memcmp(found.tokens, expected[which], sizeof found.tokens) == 0);
    self->finished++;
  } else if (status == MISTRAL_OK) {
    memcpy(expected[which], found.tokens, sizeof found.tokens);
  } else {
    CHECK(status == MISTRAL_E_CANCELLED);
    self->cancelled++;
  }
  OK(mistral_session_free(session));
}

static void *work(void *argument) {
  worker *self = argument;
  mistral_cancel *cancel = cancels[self->id];
  int i;
  for (i = 0; i < sessions; i++) {
    mistral_status status = MISTRAL_OK;
    uint32_t how = draw(self, 4);
    OK(mistral_cancel_reset(cancel));
    if (how == 3 && draw(self, 4) == 0)
      status = chat(cancel);
    else
      run(self, draw(self, PROMPTS), how, cancel);
    CHECK(status == MISTRAL_OK || status == MISTRAL_E_CANCELLED);
    cancel_someone(self);
  }
  return NULL;
}

int main(int argc, char **argv) {
  pthread_t ids[MAX_THREADS];
  worker workers[MAX_THREADS], alone = {-1, 1, 0, 0};
  const char *options;
  int i, finished = 0, cancelled = 0;
  CHECK(argc >= 4);
  options = argc > 4 ? argv[4] : "{\"threads\": 3}";
  threads = atoi(argv[2]);
  sessions = atoi(argv[3]);
  CHECK(threads > 0 && threads <= MAX_THREADS);
  OK(mistral_model_open(argv[1], strlen(argv[1]), options, strlen(options), NULL, NULL, NULL, &model));
  for (i = 0; i < PROMPTS; i++) run(&alone, (uint32_t)i, 1, NULL);
  for (i = 0; i < threads; i++) OK(mistral_cancel_new(&cancels[i]));
  for (i = 0; i < threads; i++) {
    worker fresh = {0, 0, 0, 0};
    fresh.id = i;
    fresh.random = 0x9E3779B97F4A7C15u * (uint64_t)(i + 1);
    workers[i] = fresh;
    CHECK(pthread_create(&ids[i], NULL, work, &workers[i]) == 0);
  }
  for (i = 0; i < threads; i++) {
    CHECK(pthread_join(ids[i], NULL) == 0);
    finished += workers[i].finished;
    cancelled += workers[i].cancelled;
  }
  /* Both happened, or the program proves nothing. */
  CHECK(finished > 0 && (cancelled > 0 || threads * sessions < 100));
  for (i = 0; i < threads; i++) OK(mistral_cancel_free(cancels[i]));
  OK(mistral_model_free(model));
  return 0;
}
