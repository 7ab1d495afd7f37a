/*
 * A process that forks while its threads run a model: forks MODEL FORKS. The child is refused its parent's objects and runs a model of its own;
 * the parent goes on. Prints nothing unless it fails.
 */
#define _POSIX_C_SOURCE 200809L
#include "check.h"

#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#define THREADS 4
#define LEN(text) text, strlen(text)

static const char *path;
static mistral_model *model;
static volatile sig_atomic_t stop;
static pthread_barrier_t ready;

static int32_t on_event(void *user_data, const mistral_event *event) {
  ((uint32_t *)user_data)[0] = event->token;
  return 0;
}

/* A model, a session and the last token of an answer. */
static uint32_t answer(const mistral_model *of) {
  const uint32_t tokens[2] = {104, 105};
  uint32_t last = 0;
  mistral_session *session = NULL;
  OK(mistral_session_new(of, LEN("{\"context\": 64}"), &session));
  OK(mistral_generate(session, tokens, 2, LEN("{\"max_tokens\": 6, \"ignore_eos\": true}"), NULL, on_event, &last));
  OK(mistral_session_free(session));
  return last;
}

static mistral_model *open_model(void) {
  mistral_model *opened = NULL;
  OK(mistral_model_open(LEN(path), LEN("{\"threads\": 2}"), NULL, NULL, NULL, &opened));
  return opened;
}

/*
 * What is half done when the process forks: sessions, answers, errors. Not models: a thread of theirs that starts or ends holds locks of
 * Rust's and C's standard libraries for a moment, and in the child nobody unlocks them.
 */
static void *work(void *expected) {
  mistral_session *none = NULL;
  int round;
  for (round = 0; !stop; round++) {
    CHECK(answer(model) == *(uint32_t *)expected);
    CHECK(mistral_session_new(model, LEN("{\"context\": 0}"), &none) == MISTRAL_E_ARGUMENT);
    /* The first round makes what a thread makes once. */
    if (round == 0) pthread_barrier_wait(&ready);
  }
  return NULL;
}

static void child(uint32_t expected) {
  mistral_model *own;
  mistral_session *session = NULL;
  /* One that hangs ends by a signal, which its parent sees. */
  alarm(60);
  CHECK(mistral_session_new(model, NULL, 0, &session) == MISTRAL_E_FORKED);
  own = open_model();
  CHECK(answer(own) == expected);
  OK(mistral_model_free(own));
  CHECK(mistral_model_free(model) == MISTRAL_E_FORKED);
  _exit(0);
}

int main(int argc, char **argv) {
  pthread_t threads[THREADS];
  uint32_t expected;
  int i;
  CHECK(argc == 3);
  path = argv[1];
  model = open_model();
  expected = answer(model);
  CHECK(pthread_barrier_init(&ready, NULL, THREADS + 1) == 0);
  for (i = 0; i < THREADS; i++) CHECK(pthread_create(&threads[i], NULL, work, &expected) == 0);
  pthread_barrier_wait(&ready);
  for (i = 0; i < atoi(argv[2]); i++) {
    int status = 0;
    pid_t id = fork();
    CHECK(id >= 0);
    if (id == 0) child(expected);
    CHECK(waitpid(id, &status, 0) == id && WIFEXITED(status) && WEXITSTATUS(status) == 0);
  }
  stop = 1;
  for (i = 0; i < THREADS; i++) CHECK(pthread_join(threads[i], NULL) == 0);
  OK(mistral_model_free(model));
  return 0;
}
