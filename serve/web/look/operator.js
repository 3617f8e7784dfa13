// Ends the operator's session; the chat stays.
document.addEventListener('click', async event => {
  if (!event.target.closest('[data-log-out]')) return;
  await fetch('/api/logout', {method: 'POST'});
  location.assign('/login');
});

// A dataset goes to the API as it is: the page takes no files.
document.addEventListener('submit', async event => {
  if (event.target.id !== 'import') return;
  event.preventDefault();
  const form = new FormData(event.target), told = document.getElementById('imported');
  told.textContent = 'Importing …';
  const address = `/api/import?format=${form.get('format')}&as=${form.get('as')}`;
  const answer = await fetch(address, {method: 'POST', body: form.get('file')}).catch(() => null);
  const said = await answer?.json().catch(() => null);
  told.textContent = !answer ? 'The connection was lost; nothing was imported. Try again.'
    : answer.ok ? `Imported: ${said.votes} votes, ${said.demonstrations} demonstrations, ${said.prompts} prompts; ${said.skipped} rows left out.`
    : `Nothing was imported: ${said?.error?.message ?? answer.status}`;
});
