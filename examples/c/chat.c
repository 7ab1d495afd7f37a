/* Answers a question: chat MODEL [QUESTION [MAX_TOKENS]] */
#include <mistral.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int fail(const char *what, mistral_status status) {
  char message[512];
  mistral_last_error(message, sizeof message);
  fprintf(stderr, "%s: %s: %s\n", what, mistral_status_name(status), message);
  return 1;
}

/* Writes `text` as a JSON string: at most six bytes for each of its own, the quotes and a NUL. */
static void quote(char *out, const char *text) {
  *out++ = '"';
  for (; *text; text++) {
    unsigned char c = (unsigned char)*text;
    if (c == '"' || c == '\\' || c < 0x20) {
      out += sprintf(out, "\\u%04x", c);
    } else {
      *out++ = (char)c;
    }
  }
  strcpy(out, "\"");
}

int main(int argc, char **argv) {
  const char *path = argc > 1 ? argv[1] : "";
  const char *question = argc > 2 ? argv[2] : "What is the capital of Japan?";
  int max_tokens = argc > 3 ? atoi(argv[3]) : 128;
  char *quoted = malloc(6 * strlen(question) + 3), *request = malloc(6 * strlen(question) + 256);
  mistral_model *model = NULL;
  mistral_buf *response = NULL;
  mistral_status status;
  int result = 1;

  if (!quoted || !request) {
    fprintf(stderr, "no memory\n");
  } else if ((status = mistral_model_open(path, strlen(path), NULL, 0, NULL, NULL, NULL, &model)) != MISTRAL_OK) {
    fail("open", status);
  } else {
    quote(quoted, question);
    sprintf(request, "{\"messages\": [{\"role\": \"user\", \"content\": %s}], \"max_tokens\": %d}", quoted, max_tokens);
    if ((status = mistral_chat(model, request, strlen(request), NULL, NULL, NULL, &response)) != MISTRAL_OK) {
      fail("chat", status);
    } else {
      /* A chat-completions response; a host would hand it to its JSON parser. */
      puts(mistral_buf_data(response));
      result = 0;
    }
  }
  mistral_buf_free(response);
  mistral_model_free(model);
  free(quoted);
  free(request);
  return result;
}
