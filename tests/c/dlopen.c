/*
 * Loads the library, runs a model and unloads it again, twice CYCLES times: dlopen LIBRARY MODEL CYCLES. Prints nothing unless it fails.
 */
#define _GNU_SOURCE
#include "resources.h"

#include <dlfcn.h>
#include <pthread.h>

/* check.h asks the library that is linked; here none is. */
size_t mistral_last_error(char *message, size_t capacity) {
  if (capacity > 0) *message = 0;
  return 0;
}

/* A function of the library; C has no other way to make one of what dlsym gives. */
#define FUNCTION(result, name, parameters)   \
  result(*name) parameters;                  \
  *(void **)&name = dlsym(library, #name);   \
  CHECK(name != NULL)

static const char *library_path, *model_path;

static mistral_model *open_model(void *library) {
  FUNCTION(mistral_status, mistral_model_open,
           (const char *, size_t, const char *, size_t, const mistral_cancel *, mistral_progress_fn, void *, mistral_model **));
  mistral_model *model = NULL;
  CHECK(mistral_model_open("/nowhere", 8, NULL, 0, NULL, NULL, NULL, &model) == MISTRAL_E_IO);
  OK(mistral_model_open(model_path, strlen(model_path), "{\"threads\": 2}", 14, NULL, NULL, NULL, &model));
  return model;
}

static void *use(void *library) {
  FUNCTION(mistral_status, mistral_session_new, (const mistral_model *, const char *, size_t, mistral_session **));
  FUNCTION(mistral_status, mistral_prefill,
           (mistral_session *, const uint32_t *, size_t, const mistral_cancel *, mistral_progress_fn, void *));
  FUNCTION(mistral_status, mistral_session_free, (mistral_session *));
  FUNCTION(mistral_status, mistral_model_free, (mistral_model *));
  const uint32_t tokens[3] = {1, 2, 3};
  mistral_model *model = open_model(library);
  mistral_session *session = NULL;
  OK(mistral_session_new(model, "{\"context\": 64}", 15, &session));
  OK(mistral_prefill(session, tokens, 3, NULL, NULL, NULL));
  OK(mistral_session_free(session));
  OK(mistral_model_free(model));
  return NULL;
}

/* On this thread, which stays, and on one that ends: their thread-locals go at different times. */
static void cycle(void) {
  pthread_t thread;
  void *library = dlopen(library_path, RTLD_NOW | RTLD_LOCAL);
  CHECK(library != NULL);
  use(library);
  CHECK(pthread_create(&thread, NULL, use, library) == 0 && pthread_join(thread, NULL) == 0);
  CHECK(dlclose(library) == 0);
}

/* A model whose threads run when its library is closed. */
static void close_too_early(void) {
  void *library = dlopen(library_path, RTLD_NOW | RTLD_LOCAL);
  CHECK(library != NULL && open_model(library) != NULL);
  CHECK(dlclose(library) == 0);
  cycle();
}

int main(int argc, char **argv) {
  resources before, after;
  int cycles, i;
  CHECK(argc == 4);
  library_path = argv[1];
  model_path = argv[2];
  cycles = atoi(argv[3]);
  /* The allocator makes its arenas in the first ones. */
  for (i = 0; i < cycles; i++) cycle();
  before = measure_when_threads_are(1);
  for (i = 0; i < cycles; i++) cycle();
  after = measure_when_threads_are(before.threads);
  check_flat(&before, &after);
  close_too_early();
  return 0;
}
