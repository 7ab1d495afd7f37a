/* next_loop MODEL TOKENS: generates, and prints the nanoseconds of each call of mistral_generation_next, one a line. */
#define _POSIX_C_SOURCE 200809L
#include "mistral.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static long long now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec * 1000000000LL + time.tv_nsec;
}

int main(int argc, char **argv) {
  const uint32_t prompt[2] = {104, 105};
  const char *options = "{\"ignore_eos\": true}";
  mistral_model *model = NULL;
  mistral_session *session = NULL;
  mistral_generation *generation = NULL;
  const mistral_event *event = NULL;
  int i, tokens = argc > 2 ? atoi(argv[2]) : 0;
  long long *times = malloc(sizeof *times * (size_t)(tokens + 1));
  if (argc != 3 || !times ||
      mistral_model_open(argv[1], strlen(argv[1]), "{\"threads\": 1}", 14, NULL, NULL, NULL, &model) != MISTRAL_OK ||
      mistral_session_new(model, NULL, 0, &session) != MISTRAL_OK ||
      mistral_generation_new(session, prompt, 2, options, strlen(options), NULL, NULL, NULL, &generation) != MISTRAL_OK)
    return 1;
  for (i = 0; i < tokens; i++) {
    long long start = now();
    if (mistral_generation_next(generation, &event) != MISTRAL_OK) return 1;
    times[i] = now() - start;
  }
  for (i = 0; i < tokens; i++) printf("%lld\n", times[i]);
  mistral_generation_free(generation);
  mistral_session_free(session);
  mistral_model_free(model);
  free(times);
  return 0;
}
