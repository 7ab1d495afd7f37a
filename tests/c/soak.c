/*
 * Opens a model, generates and frees everything, again and again: soak MODEL CYCLES [-v]. Memory, descriptors and threads must stay what they
 * were. Prints nothing unless it fails, or -v asks for the figures.
 */
#define _GNU_SOURCE
#include "resources.h"

/* The first cycles fill the allocator's caches and what the library makes once. */
#define WARM_UP 100
#define ROUNDS 10

static int32_t on_event(void *user_data, const mistral_event *event) {
  (void)event;
  ++*(int *)user_data;
  return 0;
}

static int32_t on_progress(void *user_data, const mistral_progress *progress) {
  (void)user_data;
  (void)progress;
  return 0;
}

static void cycle(const char *path) {
  const char *options = "{\"max_tokens\": 4, \"ignore_eos\": true, \"temperature\": 1, \"logprobs\": 2}";
  const char *request = "{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}], \"max_tokens\": 2}";
  const uint32_t tokens[3] = {1, 2, 3};
  mistral_cancel *cancel = NULL;
  mistral_model *model = NULL;
  mistral_session *session = NULL;
  mistral_generation *generation = NULL;
  const mistral_event *event = NULL;
  mistral_buf *buf = NULL;
  int events = 0;
  OK(mistral_cancel_new(&cancel));
  OK(mistral_model_open(path, strlen(path), "{\"threads\": 2}", 14, cancel, on_progress, NULL, &model));
  OK(mistral_session_new(model, "{\"context\": 64}", 15, &session));
  OK(mistral_generate(session, tokens, 3, options, strlen(options), cancel, on_event, &events));
  CHECK(events == 4);
  OK(mistral_generation_new(session, tokens, 3, NULL, 0, cancel, NULL, NULL, &generation));
  OK(mistral_generation_next(generation, &event));
  OK(mistral_chat(model, request, strlen(request), cancel, NULL, NULL, &buf));
  CHECK(mistral_buf_len(buf) > 0);
  OK(mistral_buf_free(buf));
  /* What fails leaves nothing either. */
  CHECK(mistral_model_open("/nowhere", 8, NULL, 0, cancel, NULL, NULL, &model) == MISTRAL_E_IO);
  OK(mistral_cancel_trigger(cancel));
  CHECK(mistral_generation_next(generation, &event) == MISTRAL_E_CANCELLED);
  CHECK(mistral_model_open(path, strlen(path), NULL, 0, cancel, NULL, NULL, &model) == MISTRAL_E_CANCELLED);
  OK(mistral_model_free(model));
  OK(mistral_session_free(session));
  OK(mistral_generation_free(generation));
  OK(mistral_cancel_free(cancel));
}

static void print(int cycles, const resources *now) {
  printf("%6d cycles: %ld descriptors, %ld threads, %ld maps, %zu bytes allocated, %zu KiB resident\n", cycles, now->descriptors, now->threads,
         now->maps, now->allocated, now->resident >> 10);
}

int main(int argc, char **argv) {
  int cycles, verbose, round, i;
  resources before, now;
  CHECK(argc >= 3);
  cycles = atoi(argv[2]);
  verbose = argc > 3;
  for (i = 0; i < WARM_UP; i++) cycle(argv[1]);
  before = measure_when_threads_are(1);
  if (verbose) print(0, &before);
  for (round = 1; round <= ROUNDS; round++) {
    for (i = 0; i < cycles / ROUNDS; i++) cycle(argv[1]);
    now = measure_when_threads_are(before.threads);
    if (verbose) print(round * (cycles / ROUNDS), &now);
    check_flat(&before, &now);
  }
  return 0;
}
