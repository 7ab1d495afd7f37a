// Answers a question as a stream of chunks: chat MODEL [QUESTION [MAX_TOKENS]]
#include <mistral.hpp>

#include <cstdio>
#include <iostream>
#include <string>

// `text` as a JSON string; a host has its JSON library for this.
static std::string quote(const std::string &text) {
  std::string out = "\"";
  for (const char c : text) {
    char escape[8];
    std::snprintf(escape, sizeof escape, "\\u%04x", static_cast<unsigned>(c));
    out += c == '"' || c == '\\' || (c >= 0 && c < 0x20) ? escape : std::string(1, c);
  }
  return out + "\"";
}

int main(int argc, char **argv) try {
  const std::string question = argc > 2 ? argv[2] : "What is the capital of Japan?";
  const std::string max_tokens = argc > 3 ? argv[3] : "128";
  const mistral::Model model = mistral::Model::open(argc > 1 ? argv[1] : "");
  const std::string request = "{\"messages\": [{\"role\": \"user\", \"content\": " + quote(question) +
                              "}], \"max_tokens\": " + max_tokens + ", \"stream\": true}";
  model.chat(request, nullptr, [](mistral::View chunk) { std::cout << std::string(chunk) << std::endl; });
} catch (const mistral::Error &error) {
  std::cerr << error.name() << ": " << error.what() << std::endl;
  return 1;
}
