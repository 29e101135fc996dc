// JavaScript clients against a server: `node node_clients.mjs URL NAME` tries one of them and exits with 0 when it works.
import { createAnthropic } from '@ai-sdk/anthropic';
import { createOpenAI } from '@ai-sdk/openai';
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { HumanMessage } from '@langchain/core/messages';
import { tool as langchainTool } from '@langchain/core/tools';
import { ChatOpenAI } from '@langchain/openai';
import { generateText, Output, stepCountIs, streamText, tool } from 'ai';
import { z } from 'zod';

const [url, name] = process.argv.slice(2);
const { data } = await (await fetch(`${url}/v1/models`)).json();
const id = data[0].id;

const person = z.object({ name: z.string(), age: z.number().int() });
const weather = tool({
  description: 'The weather of a city.',
  inputSchema: z.object({ city: z.string() }),
  execute: async ({ city }) => `Sunny, 21 degrees in ${city}.`,
});

/** A text, a stream, a structured answer, a tool with its result in the next turn, and a turn after an answer, to which the
 * responses API only refers. */
async function aiSdk(model) {
  const text = await generateText({ model, prompt: 'Say hello.', maxOutputTokens: 24 });
  if (!text.text) throw new Error('no text');
  let streamed = '';
  for await (const part of streamText({ model, prompt: 'Count to five.', maxOutputTokens: 24 }).textStream) streamed += part;
  if (!streamed) throw new Error('no streamed text');
  const shaped = await generateText({ model, output: Output.object({ schema: person }), prompt: 'As data: Ada is 36 years old.' });
  const called = await generateText({
    model,
    tools: { weather },
    toolChoice: 'required',
    stopWhen: stepCountIs(1),
    prompt: 'What is the weather in Rome?',
    maxOutputTokens: 200,
  });
  if (called.toolCalls[0]?.toolName !== 'weather') throw new Error('no call');
  const turns = [{ role: 'user', content: 'What is the weather in Rome?' }, ...called.response.messages];
  const after = await generateText({ model, tools: { weather }, messages: turns, maxOutputTokens: 64 });
  const resumed = [...turns, ...after.response.messages, { role: 'user', content: 'And in Oslo?' }];
  await generateText({ model, tools: { weather }, messages: resumed, maxOutputTokens: 24 });
  return `${JSON.stringify(shaped.output)} ${JSON.stringify(called.toolCalls[0].input)} ${JSON.stringify(after.text)}`;
}

/** A tool of the responses API whose input is one text that fits an expression. */
async function customTool(provider) {
  const format = { type: 'grammar', syntax: 'regex', definition: '[a-c]{3}' };
  const patch = provider.tools.customTool({ name: 'patch', description: 'Changes a file.', format });
  const asked = { tools: { patch }, toolChoice: 'required', maxOutputTokens: 100 };
  const called = await generateText({ model: provider(id), prompt: 'Change it.', ...asked });
  if (!/^[a-c]{3}$/.test(called.toolCalls[0]?.input)) throw new Error('no custom call');
  return called.toolCalls[0].input;
}

const openai = createOpenAI({ baseURL: `${url}/v1`, apiKey: 'none' });
const clients = {
  ai_sdk_openai: async () => `${await aiSdk(openai(id))} ${await customTool(openai)}`,
  ai_sdk_openai_chat: () => aiSdk(openai.chat(id)),
  ai_sdk_compatible: () =>
    aiSdk(createOpenAICompatible({ name: 'local', baseURL: `${url}/v1`, supportsStructuredOutputs: true })(id)),
  ai_sdk_anthropic: () => aiSdk(createAnthropic({ baseURL: `${url}/v1`, apiKey: 'none' })(id)),
  langchain: async () => {
    const model = new ChatOpenAI({ model: id, apiKey: 'none', configuration: { baseURL: `${url}/v1` }, maxTokens: 200 });
    const said = await model.invoke([new HumanMessage('Say hello.')]);
    const shaped = await model.withStructuredOutput(person).invoke('As data: Ada is 36 years old.');
    const called = await model
      .bindTools([langchainTool(async () => '', { name: 'weather', description: 'Weather.', schema: z.object({ city: z.string() }) })], {
        tool_choice: 'any',
      })
      .invoke('What is the weather in Rome?');
    let n = 0;
    for await (const _ of await model.stream('Count to five.')) n += 1;
    if (n < 2) throw new Error('no stream');
    return `${JSON.stringify(said.content)} ${JSON.stringify(shaped)} ${JSON.stringify(called.tool_calls[0].args)}`;
  },
};

console.log(await clients[name]());
