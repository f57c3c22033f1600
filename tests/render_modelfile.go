// Render conversations as Ollama would: read a Modelfile's TEMPLATE and SYSTEM, execute the template with Go's own
// text/template.
//
//	go run render_modelfile.go Modelfile <conversations.json >texts.json
//
// In: a list of conversations, each a list of {"role", "content"}. Out: the list of their texts. What Ollama does
// is described beside each step, after its parser/parser.go, server/routes.go and template/template.go.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"text/template"
)

type message struct {
	Role, Content string
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// unquote returns a value without its three quotes or one, and whether all that were opened are closed.
func unquote(value string) (string, bool) {
	for _, quotes := range []string{`"""`, `"`} {
		if strings.HasPrefix(value, quotes) {
			closed := len(value) >= 2*len(quotes) && strings.HasSuffix(value, quotes)
			return strings.TrimSuffix(strings.TrimPrefix(value, quotes), quotes), closed
		}
	}
	return value, true
}

// readModelfile returns the last value of each command. A value reaches to the first line end that is not in quotes;
// characters that cannot be printed are lost, except for blanks, tabs and line ends.
func readModelfile(text string) map[string]string {
	commands := map[string]string{}
	for text = strings.TrimLeft(text, " \t\r\n"); text != ""; text = strings.TrimLeft(text, " \t\r\n") {
		if text[0] == '#' {
			_, text, _ = strings.Cut(text, "\n")
			continue
		}
		name, rest, _ := strings.Cut(text, " ")
		var value strings.Builder
		text = ""
		for place, letter := range rest {
			if letter == '\n' || letter == '\r' {
				if _, closed := unquote(strings.TrimSpace(value.String())); closed {
					text = rest[place:]
					break
				}
			}
			if strconv.IsPrint(letter) || strings.ContainsRune("\t\r\n", letter) {
				value.WriteRune(letter)
			}
		}
		content, closed := unquote(strings.TrimSpace(value.String()))
		if !closed {
			check(fmt.Errorf("%s: quotes are not closed", name))
		}
		commands[strings.ToLower(name)] = content
	}
	return commands
}

// complete puts the Modelfile's system text first, unless the conversation begins with one, and joins messages of one
// role that follow each other. It also returns all system texts in one.
func complete(conversation []message, system string) ([]*message, string) {
	if system != "" && conversation[0].Role != "system" {
		conversation = append([]message{{"system", system}}, conversation...)
	}
	var messages []*message
	var systems []string
	for place := range conversation {
		next := &conversation[place]
		if next.Role == "system" {
			systems = append(systems, next.Content)
		}
		if last := len(messages) - 1; last >= 0 && messages[last].Role == next.Role {
			messages[last].Content += "\n\n" + next.Content
		} else {
			messages = append(messages, next)
		}
	}
	return messages, strings.Join(systems, "\n\n")
}

func main() {
	content, err := os.ReadFile(os.Args[1])
	check(err)
	commands := readModelfile(string(content))
	parsed, err := template.New("").Option("missingkey=zero").Parse(commands["template"])
	check(err)
	var conversations [][]message
	check(json.NewDecoder(os.Stdin).Decode(&conversations))
	texts := []string{}
	for _, conversation := range conversations {
		messages, system := complete(conversation, commands["system"])
		var text strings.Builder
		check(parsed.Execute(&text, map[string]any{"System": system, "Messages": messages, "Response": ""}))
		texts = append(texts, text.String())
	}
	check(json.NewEncoder(os.Stdout).Encode(texts))
}
