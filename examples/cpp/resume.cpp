// Reads a text, saves the session in session.bin, and goes on from that file: resume MODEL [TEXT [MAX_TOKENS]]
#include <mistral.hpp>

#include <fstream>
#include <iostream>
#include <iterator>
#include <string>

static void save(const mistral::Model &model, const std::string &text) {
  mistral::Session session = model.session();
  session.prefill(model.encode(text, "{\"bos\": true}"));
  const mistral::Buffer saved = session.save();
  std::ofstream file("session.bin", std::ios::binary);
  file.write(saved.data(), static_cast<std::streamsize>(saved.size()));
  if (!file.flush()) throw std::runtime_error("session.bin cannot be written");
}

int main(int argc, char **argv) try {
  const std::string options = std::string("{\"max_tokens\": ") + (argc > 3 ? argv[3] : "64") + "}";
  const mistral::Model model = mistral::Model::open(argc > 1 ? argv[1] : "");
  save(model, argc > 2 ? argv[2] : "Once upon a time");
  // Here the program could end, and another go on. A file that was changed is refused.
  std::ifstream file("session.bin", std::ios::binary);
  const std::string saved((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  mistral::Session session = model.load_session(saved);
  for (const mistral::Event &event : session.generation(mistral::TokenView(), options))
    std::cout << std::string(event.text) << std::flush;
  std::cout << std::endl;
} catch (const std::exception &error) {
  std::cerr << error.what() << std::endl;
  return 1;
}
