/* Four threads continue a text at once, on one model: threads MODEL [TEXT [MAX_TOKENS]] */
#include <mistral.h>

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { THREADS = 4 };

typedef struct {
  const mistral_model *model;
  const uint32_t *tokens;
  size_t count;
  char options[96];
  uint32_t *answer;
  size_t answer_len;
  mistral_status status;
  char message[256];
} worker;

static int32_t collect(void *user_data, const mistral_event *event) {
  worker *self = user_data;
  self->answer[self->answer_len++] = event->token;
  return 0;
}

/* A session of its own: one thread at a time uses it, while any number share the model. */
static void *work(void *argument) {
  worker *self = argument;
  mistral_session *session = NULL;
  self->status = mistral_session_new(self->model, NULL, 0, &session);
  if (self->status == MISTRAL_OK)
    self->status = mistral_generate(session, self->tokens, self->count, self->options, strlen(self->options), NULL,
                                    collect, self);
  if (self->status != MISTRAL_OK) mistral_last_error(self->message, sizeof self->message);
  mistral_session_free(session);
  return NULL;
}

int main(int argc, char **argv) {
  const char *path = argc > 1 ? argv[1] : "", *text = argc > 2 ? argv[2] : "Once upon a time";
  int max_tokens = argc > 3 ? atoi(argv[3]) : 64, failed = 0, i;
  size_t count = 0, capacity = strlen(text) + 2;
  uint32_t *tokens = malloc(capacity * sizeof *tokens);
  mistral_model *model = NULL;
  worker workers[THREADS] = {{0}};
  pthread_t threads[THREADS];

  if (!tokens || mistral_model_open(path, strlen(path), NULL, 0, NULL, NULL, NULL, &model) != MISTRAL_OK ||
      mistral_encode(model, text, strlen(text), NULL, 0, tokens, capacity, &count) != MISTRAL_OK) {
    char message[512];
    mistral_last_error(message, sizeof message);
    fprintf(stderr, "threads: %s\n", message);
    mistral_model_free(model);
    free(tokens);
    return 1;
  }
  for (i = 0; i < THREADS; i++) {
    worker *self = &workers[i];
    self->model = model;
    self->tokens = tokens;
    self->count = count;
    self->answer = malloc((size_t)max_tokens * sizeof *self->answer);
    snprintf(self->options, sizeof self->options, "{\"max_tokens\": %d, \"temperature\": 1, \"seed\": %d}", max_tokens, i);
    if (!self->answer || pthread_create(&threads[i], NULL, work, self) != 0) exit(1);
  }
  for (i = 0; i < THREADS; i++) {
    worker *self = &workers[i];
    mistral_buf *answer = NULL;
    pthread_join(threads[i], NULL);
    if (self->status == MISTRAL_OK) self->status = mistral_decode(model, self->answer, self->answer_len, NULL, 0, &answer);
    if (self->status == MISTRAL_OK) {
      printf("%d: %s\n", i, mistral_buf_data(answer));
    } else {
      fprintf(stderr, "%d: %s: %s\n", i, mistral_status_name(self->status), self->message);
      failed = 1;
    }
    mistral_buf_free(answer);
    free(self->answer);
  }
  mistral_model_free(model);
  free(tokens);
  return failed;
}
