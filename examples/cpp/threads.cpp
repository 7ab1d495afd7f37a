// Four threads continue a text at once, on one model: threads MODEL [TEXT [MAX_TOKENS]]
#include <mistral.hpp>

#include <future>
#include <iostream>
#include <string>
#include <vector>

// In a session of its own: one thread at a time uses it, while any number share the model.
static std::string answer(const mistral::Model &model, const std::string &text, const std::string &options) {
  std::string answer;
  mistral::Session session = model.session();
  for (const mistral::Event &event : session.generation(model.encode(text), options)) answer += std::string(event.text);
  return answer;
}

int main(int argc, char **argv) try {
  const std::string text = argc > 2 ? argv[2] : "Once upon a time", max_tokens = argc > 3 ? argv[3] : "64";
  const mistral::Model model = mistral::Model::open(argc > 1 ? argv[1] : "");
  std::vector<std::future<std::string>> answers;
  for (int seed = 0; seed < 4; seed++) {
    const std::string options =
        "{\"max_tokens\": " + max_tokens + ", \"temperature\": 1, \"seed\": " + std::to_string(seed) + "}";
    answers.push_back(std::async(std::launch::async, answer, std::cref(model), text, options));
  }
  for (std::future<std::string> &each : answers) std::cout << each.get() << std::endl;
} catch (const mistral::Error &error) {
  std::cerr << error.name() << ": " << error.what() << std::endl;
  return 1;
}
